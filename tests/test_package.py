"""The source distribution, which a job of Vertex AI's Python packages installs."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

# Before a test takes away what leads to the network: the registries are needed.
ENVIRON = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
LOCK = REPOSITORY / "requirements-image-cpu.lock"
# What a fresh clone has not. What was built before could hide that a file is left out.
NOT_CLONED = (".*", "*.egg-info", "__pycache__", "build", "dist", "runs")


def called(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    """Returns what a command prints, which must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRON, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns the source distribution, made from a clean copy of the tree."""
    copy = tmp_path_factory.mktemp("clean") / "copy"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(*NOT_CLONED))
    called(sys.executable, "setup.py", "--quiet", "sdist", cwd=copy)
    [path] = (copy / "dist").iterdir()
    return path


def test_the_sdist_holds_every_module_and_asset_and_the_licences(sdist):
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        str(path.relative_to(REPOSITORY))
        for package in ("trainer", "deploy")
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    others = {"LICENSE", "NOTICE", "README.md", "setup.py", "pyproject.toml"}
    assert wanted | others <= found
    assert not [name for name in found if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_the_sdist_trains_from_an_environment_of_its_own(sdist, tmp_path):
    # Digests would be asked of the sdist, too.
    locked = re.findall(r"^\S+==\S+", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "constraints").write_text("\n".join(locked), encoding="utf-8")
    called(sys.executable, "-m", "venv", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--use-pep517"]
    called(*pip, "--constraint=constraints", f"{sdist}[cpu]", cwd=tmp_path)
    code = "import deploy, trainer; print(deploy.__file__, trainer.__file__)"
    for path in called(python, "-c", code, cwd=tmp_path).split():
        assert pathlib.Path(path).is_relative_to(tmp_path / "env")
    flags = ["--job_dir=run", "--total_steps=2", "--batch_size=4", "--image_size=64"]
    flags += ["--limit_train_examples=32", "--limit_eval_examples=8"]
    called(python, "-m", "trainer.task", *flags, cwd=tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["complete"] and result["step"] == 2
    shutil.rmtree(tmp_path / "env")  # 2 GB; pytest would keep it.
