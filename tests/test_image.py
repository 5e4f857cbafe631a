"""The container image: built from the Dockerfile for real, run with no network."""

import json
import os
import pathlib
import re
from collections.abc import Iterator

import pytest

from tests import image

# Before a test takes away what leads to the network: the registries are needed.
ENVIRON = dict(os.environ)
LOCK = image.REPOSITORY / "requirements-image-cpu.lock"
# Leaves room for newer versions; TensorFlow alone has 1.0e9.
MOST_BYTES = 2.3e9
FLAGS = ["--job_dir=/job/run", "--batch_size=4", "--image_size=64"]
FLAGS += ["--limit_train_examples=32", "--limit_eval_examples=8"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[image.Image]:
    """Returns the cpu image and a container of it."""
    if reason := image.missing():
        pytest.skip(reason)
    with image.built(tmp_path_factory.mktemp("image"), ENVIRON) as of_cpu:
        yield of_cpu


def test_the_image_runs_as_root_and_has_bash_and_the_test_no_network(built, tmp_path):
    look = "import socket; print([name for _, name in socket.if_nameindex()])"
    done = built.run("bash", "-c", f"id -u; python -c '{look}'", job=tmp_path)
    assert (done.returncode, done.stdout) == (0, "0\n['lo']\n")
    call = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=60)"
    done = built.run("python", "-c", call, job=tmp_path)
    assert "Network is unreachable" in done.stderr


def test_the_image_holds_the_packages_of_its_lock_and_ours_only(built, tmp_path):
    code = "import importlib.metadata as m; "
    code += "print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    done = built.run("python", "-c", code, job=tmp_path)
    found = {re.sub(r"[-_.]+", "-", name).lower() for name in done.stdout.split()}
    locked = re.findall(r"^(\S+==\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {re.sub(r"[-_.]+", "-", name).lower() for name in locked}
    [ours] = found - wanted
    assert ours.startswith("segtrainer==")
    assert not wanted - found
    names = {name.partition("==")[0] for name in found}
    assert not names & {"google-cloud-aiplatform", "pytest", "ruff", "pip"}


def test_a_run_in_the_image_goes_on_from_its_checkpoint(built, tmp_path):
    command = [*built.entrypoint(), *FLAGS]
    assert command[:3] == ["python", "-m", "trainer.task"]
    for steps in (2, 4):
        done = built.run(*command, f"--total_steps={steps}", job=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "Going on from step-00000002, " in done.stderr
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["complete"] and result["step"] == 4
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4]


def test_the_image_is_not_larger_than_it_must_be(built, capsys):
    with capsys.disabled():
        print(f"\n{built.num_bytes / 1e9:.2f} GB, built in {built.seconds:.0f} s")
    assert built.num_bytes < MOST_BYTES


def test_the_base_image_is_one_precise_version():
    text = pathlib.Path(image.REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
