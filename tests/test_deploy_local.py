"""An order runs here as it would there: the same variables, and the same result."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from deploy import local, replicas
from deploy.order import Order

ROOT = pathlib.Path(local.__file__).parents[1]
SMALL = ["--image_size=32", "--noexport", "--num_pictures=1", "--test_split=none"]
SMALL += ["--encoder_alpha=0.35", "--encoder_weights=none"]


def variables(**settings) -> list[dict[str, str]]:
    """Returns what the processes of an order find, without what they inherit."""
    order = Order(job_name="pets", **settings)
    environ = {"PATH": "/bin", "TF_CONFIG": "{}", "CLOUD_ML_TRIAL_ID": "3"}  # Not ours.
    found = replicas.of_job(order, ["--epochs=1"], "out/pets", "7", environ)
    return [one.environment for one in found]


def test_a_job_of_one_replica_has_no_tf_config():
    [found] = variables(project="my-project", env=("A=b=c",))
    spec = json.loads(found.pop("CLUSTER_SPEC"))
    assert found == {
        "PATH": "/bin",
        "A": "b=c",
        "CLOUD_ML_JOB_ID": "7",
        "CLOUD_ML_PROJECT_ID": "my-project",
        "AIP_MODEL_DIR": "out/pets/model/",
        "AIP_CHECKPOINT_DIR": "out/pets/checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": "out/pets/logs/",
    }
    [host] = spec["cluster"].pop("workerpool0")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", host)
    job = json.loads(spec.pop("job"))
    assert job["workerPoolSpecs"][0]["containerSpec"]["args"] == ["--epochs=1"]
    task = {"type": "workerpool0", "index": 0}
    assert spec == {"cluster": {}, "environment": "cloud", "task": task}


def test_each_worker_finds_its_place_among_all():
    found = variables(num_workers=3)
    told = [json.loads(one["TF_CONFIG"]) for one in found]
    specs = [json.loads(one["CLUSTER_SPEC"]) for one in found]
    hosts = told[0]["cluster"]["chief"] + told[0]["cluster"]["worker"]
    assert len(set(hosts)) == 3
    assert all(one["cluster"] == told[0]["cluster"] for one in told)
    assert [(one["task"]["type"], one["task"]["index"]) for one in told] == [
        *(("chief", 0), ("worker", 0), ("worker", 1))
    ]
    assert [(one["task"]["type"], one["task"]["index"]) for one in specs] == [
        *(("workerpool0", 0), ("workerpool1", 0), ("workerpool1", 1))
    ]
    assert specs[2]["cluster"] == {"workerpool0": hosts[:1], "workerpool1": hosts[1:]}


def test_a_trial_has_a_folder_and_a_metric_file_of_its_own():
    [one] = replicas.of_job(Order(), [], "out/pets", "7", {}, trial="3")
    found = one.environment
    assert found["AIP_MODEL_DIR"] == "out/pets/3/model/"
    assert found["CLOUD_ML_TRIAL_ID"] == "3"
    assert found["CLOUD_ML_HP_METRIC_FILE"] == "out/pets/3/hypertune/output.metrics"
    assert json.loads(found["CLUSTER_SPEC"])["task"]["trial"] == "3"


def test_processes_share_out_the_gpus():
    order = Order(num_workers=2, accelerator_type="NVIDIA_L4", accelerator_count=2)
    found = replicas.of_job(order, [], "out", "7", {}, gpus=["4", "5", "6", "7"])
    gpus = [one.environment["CUDA_VISIBLE_DEVICES"] for one in found]
    assert gpus == ["4,5", "6,7"]
    [one] = replicas.of_job(Order(), [], "out", "7", {}, gpus=["0"])
    assert one.environment["CUDA_VISIBLE_DEVICES"] == ""  # None was ordered.


def test_the_gpus_are_those_that_the_user_has_chosen():
    assert replicas.gpus_here({"CUDA_VISIBLE_DEVICES": "2,5"}) == ["2", "5"]
    for none in ("", "-1"):
        assert replicas.gpus_here({"CUDA_VISIBLE_DEVICES": none}) == []


def test_a_gpu_is_counted_once_also_where_its_name_says_that_it_is_one(
    tmp_path, monkeypatch
):
    program = tmp_path / "nvidia-smi"
    line = "GPU 0: NVIDIA GeForce RTX 4070 Laptop GPU (UUID: GPU-1)"
    program.write_text(f"#!/bin/sh\necho '{line}'\necho '  MIG 1g.5gb Device 0:'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert replicas.gpus_here({}) == ["0"]


def test_what_this_machine_lacks_is_said_or_refused():
    gpus = dict(accelerator_type="NVIDIA_L4", num_workers=2, accelerator_count=2)
    order = Order(**gpus, reduction_servers=1, image="image")
    without = replicas.lacks(order, num_gpus=0)
    assert [line.split(" (")[0] for line in without] == [
        *("2 NVIDIA_L4 of each worker", "Reduction Server", "image")
    ]
    assert replicas.lacks(Order(**gpus), num_gpus=4) == []
    with pytest.raises(ValueError, match="has 3 GPUs, the order asks for 4"):
        replicas.lacks(Order(**gpus), num_gpus=3)
    with pytest.raises(ValueError, match="has 4 GPUs, the order asks for 8"):
        replicas.lacks(Order(**gpus), num_gpus=4, trials_at_once=2)
    with pytest.raises(ValueError, match="this machine has no TPU"):
        replicas.lacks(Order(machine_type="ct5lp-hightpu-4t"), num_gpus=0)


MIRRORED = ("--", "--strategy=mirrored")


@pytest.mark.parametrize(
    "args, line",
    [
        (["--", "--epoch=3"], "Unknown command line flag 'epoch'"),
        (
            ["--num_workers=2", "--", "--strategy=mirrored"],
            "2 workers need --strategy=",
        ),
        (["--machine_type=ct5lp-hightpu-1t"], "this machine has no TPU"),
        (
            ["--search=optimizer=adam/sgd"],
            "the search holds a trial that would be refused",
        ),
        (["--trials=3"], "a search needs search or search_space"),
        (
            ["--accelerator_type=NVIDIA_L4", "--accelerator_count=2", *MIRRORED],
            "strategy mirrored needs GPUs, and this machine has none",
        ),
        (["--preempt_every_seconds=0"], "preempt_every_seconds must be at least 1"),
    ],
)
def test_an_order_that_cannot_run_here_is_refused(
    args, line, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert local.main([f"--output_dir={tmp_path}", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith(f"segtrainer: {line}")
    assert list(tmp_path.iterdir()) == []


def here(tmp_path: pathlib.Path, *args: str) -> subprocess.CompletedProcess:
    """Returns what an order that runs here printed, and its exit code."""
    command = [sys.executable, "-m", "deploy.local", f"--output_dir={tmp_path}", *args]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )


def weights(job_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all that the newest checkpoint of a run holds."""
    newest = max((job_dir / "checkpoints").glob("step-*.npz"))
    with np.load(newest) as file:
        return {name: file[name] for name in file.files if name != "state"}


@pytest.mark.slow
def test_an_order_of_two_workers_that_is_preempted_twice_ends_bit_equal(tmp_path):
    trainer = [
        # Of which 16 fall to each of two workers: the sums are those of one process.
        *("--global_batch_size=32", "--total_steps=120", "--eval_every_steps=120"),
        *("--deterministic", "--log_every_steps=50", "--grace_seconds=60", *SMALL),
    ]
    calm = here(tmp_path, "--job_name=calm", "--", *trainer)
    assert calm.returncode == 0, calm.stdout
    order = ["--num_workers=2", "--restart_job_on_worker_restart", "--job_name=taken"]
    preempted = ["--preempt_every_seconds=20", "--preemptions=2"]
    taken = here(tmp_path, *order, *preempted, "--", *trainer)
    assert taken.returncode == 0, taken.stdout
    assert taken.stdout.count("is preempted") == 2
    assert "workerpool1-0 | " in taken.stdout
    first, second = weights(tmp_path / "calm"), weights(tmp_path / "taken")
    assert first.keys() == second.keys() and len(first) > 100
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.slow
def test_sigterm_to_the_order_lets_the_run_save(tmp_path):
    command = [sys.executable, "-m", "deploy.local", f"--output_dir={tmp_path}"]
    trainer = ["--", "--total_steps=100000", "--log_every_steps=1", *SMALL]
    process = subprocess.Popen(
        [*command, *trainer],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(r"\[\d+\] of 100000", line):
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert re.search(r"interrupted after step \d+ \(SIGTERM\); step-\d+ is kept", out)
