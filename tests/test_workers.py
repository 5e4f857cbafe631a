"""Several workers train as one does, whatever happens to them: real processes."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import kill
from tests import cluster
from trainer import interruption

STEPS = 200
FLAGS = [
    *("--deterministic", "--image_size=32", "--num_pictures=1", "--val_fraction=0.2"),
    *("--global_batch_size=32", f"--total_steps={STEPS}", "--log_every_steps=2"),
    *("--encoder_weights=none", "--eval_every_steps=100", "--crop_scale_min=0.7"),
    *("--brightness=0.1", "--cache=memory", "--checkpoint_every_steps=90"),
    "--noexport",
    "--grace_seconds=60",  # Other tests may take the cores.
]
SECONDS = 300.0


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Returns the bundled sample, whose 5 shards do not fit 2 workers."""
    from trainer import dataset

    return dataset.SAMPLE_DIR


def command(data_dir: str, job_dir: pathlib.Path) -> list[str]:
    return [*FLAGS, f"--data_dir={data_dir}", f"--job_dir={job_dir}"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, data_dir):
    """Returns the folder of a run of one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference")
    _clean()
    [process] = cluster.start(
        1, command(data_dir, folder / "job"), folder / "log", folder / "taken"
    )
    assert cluster.end([process]) == [0], (folder / "log-0").read_text()
    return folder


def _clean() -> None:
    os.environ["NO_GCE_CHECK"] = "true"  # Fixtures of a module come before a test's.


def rows(job_dir: pathlib.Path) -> list[dict]:
    """Returns the rows of a run, but for what tells of the clock."""
    clock = ("images_per_second", "waiting_for_data")
    found = map(json.loads, (job_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in clock} for row in found]


def until_step(
    job_dir: pathlib.Path, step: int, processes: list[subprocess.Popen]
) -> None:
    """Waits until a run has recorded a step, or later ones."""
    path, give_up = job_dir / "metrics.jsonl", time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        assert all(process.poll() is None for process in processes)
        if path.exists():
            # The last line may be half written.
            rows = path.read_text().splitlines()[:-1]
            if rows and json.loads(rows[-1])["step"] >= step:
                return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in {SECONDS:.0f} seconds")


@pytest.mark.slow
def test_a_run_stopped_five_times_and_killed_once_ends_as_if_it_had_not_been(
    reference, data_dir, tmp_path
):
    job_dir, log, taken = (tmp_path / name for name in ("job", "log", "taken"))
    flags, rng = command(data_dir, job_dir), random.Random(0)
    step = 0
    for turn, count in enumerate([2, 2, 2, 1, 2, 2]):
        processes = cluster.start(count, flags, log, taken)
        step += rng.randint(8, 20)
        until_step(job_dir, step, processes)
        is_killed = turn == 4
        processes[-1].send_signal(signal.SIGKILL if is_killed else signal.SIGTERM)
        began = time.monotonic()
        codes = cluster.end(processes)
        told = pathlib.Path(f"{log}-0").read_text().splitlines()[-1]
        if is_killed:
            assert codes == [interruption.PREEMPTED, -signal.SIGKILL]
            assert "worker 1 is gone or gave no answer" in told
        else:
            assert codes == [interruption.PREEMPTED] * count
            assert "(another worker" in told or count == 1 and "(SIGTERM)" in told
        assert time.monotonic() - began < 60  # The grace given above.
        saved = json.loads((job_dir / "checkpoints" / "checkpoint.json").read_text())
        assert f"{saved['latest']} is kept, the same command goes on" in told
        step = int(saved["latest"].removeprefix("step-"))
    processes = cluster.start(2, flags, log, taken)
    assert cluster.end(processes) == [0, 0], pathlib.Path(f"{log}-0").read_text()

    log_of_chief = pathlib.Path(f"{log}-0").read_text()
    assert "of 32 examples (16 on each of 2 replicas), " in log_of_chief
    assert "The 5 train files do not fit 2 workers: together they" in log_of_chief

    found, expected = (
        cluster.recorded(folder / "taken") for folder in (tmp_path, reference)
    )
    for step in range(1, STEPS + 1):
        assert found[step] == expected[step], step
        assert len(found[step]) == 32
    # Also with the one restart on another number of replicas: 16 divides each share.
    name = f"step-{STEPS:08d}.npz"
    arrays = (folder / "job" / "checkpoints" / name for folder in (tmp_path, reference))
    assert kill.same_weights(*arrays) == []
    for ours, theirs in zip(rows(job_dir), rows(reference / "job"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)  # The loss is told in float32.
    result = json.loads((job_dir / "result.json").read_text())
    assert result["seconds_of"]["lost_to_restarts"] > 5


@pytest.mark.slow
def test_a_worker_that_hangs_is_given_up_by_the_others(data_dir, tmp_path):
    flags = [*command(data_dir, tmp_path / "job"), "--total_steps=100000"]
    processes = cluster.start(2, flags, tmp_path / "log", module="tests.small")
    try:
        until_step(tmp_path / "job", 4, processes)
        processes[1].send_signal(signal.SIGSTOP)
        assert processes[0].wait(timeout=60) == interruption.PREEMPTED
    finally:
        for process in processes:
            process.kill()
    told = (tmp_path / "log-0").read_text().splitlines()[-1]
    assert "worker 1 is gone or gave no answer in time, so that the others stop" in told


@pytest.mark.slow
def test_workers_that_never_come_are_waited_for_so_long_and_named(tmp_path):
    configs = cluster.tf_configs(2)
    for index, says in ((0, "waited 2 seconds for 127.0.0.1:"), (1, "could not join")):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "trainer.task"),
                *(f"--job_dir={tmp_path / 'job'}", "--worker_timeout_seconds=2"),
            ],
            env={**os.environ, "TF_CONFIG": configs[index]},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == interruption.PREEMPTED
        [line] = [x for x in done.stderr.splitlines() if x.startswith("segtrainer: ")]
        assert says in line
        assert not (tmp_path / "job").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--job_dir=job"],
            "job_dir must be one that all workers read, got job, where worker 1",
        ),
        (
            ["--job_dir=../job", "--checkpoint_dir=apart"],
            "checkpoint_dir must be one that all workers read, got apart, where worker 1",
        ),
        (
            ["--job_dir=../job", "--init_from=begun.npz"],
            "all workers must begin with the same weights, got others on worker 1",
        ),
    ],
)
def test_a_worker_whose_files_are_not_the_chiefs_is_refused(
    reference, data_dir, tmp_path, flags, says
):
    _clean()
    processes = []
    for index, text in enumerate(cluster.tf_configs(2)):
        machine = _made(tmp_path / f"machine-{index}")
        saved = reference / "job" / "checkpoints" / f"step-{STEPS:08d}.npz"
        with np.load(saved) as arrays:
            begun = {
                n: a + index if a.dtype.kind == "f" else a for n, a in arrays.items()
            }
        np.savez(machine / "begun.npz", **begun)
        processes.append(
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.small", *flags),
                    *(*FLAGS, f"--data_dir={data_dir}"),
                ],
                cwd=machine,
                env={**os.environ, "TF_CONFIG": text, "PYTHONPATH": os.getcwd()},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    told = [process.communicate(timeout=SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 2], told
    assert says in told[1]
    assert [path.name for path in (tmp_path / "machine-1").iterdir()] == ["begun.npz"]


def _made(directory: pathlib.Path) -> pathlib.Path:
    directory.mkdir()
    return directory
