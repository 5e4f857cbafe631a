"""The same run on 1, 2 and 4 replicas or workers: the same examples and loss."""

import json
import os

import pytest

from tests import cluster
from trainer import checkpoint

STEPS = 20
SEVERAL = ["2 replicas", "4 replicas", "2 workers", "4 workers"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the job_dir of a run on the bundled sample, by what it ran on."""
    os.environ["NO_GCE_CHECK"] = "true"
    found, started = {}, []
    for name in ("1 replica", *SEVERAL):
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        number, kind = int(name.split()[0]), name.split()[1]
        flags = [
            *(f"--job_dir={folder / 'job'}", "--global_batch_size=64"),
            *(f"--total_steps={STEPS}", f"--eval_every_steps={STEPS}"),
            *("--log_every_steps=1", "--limit_eval_examples=9", "--image_size=64"),
            *("--crop_scale_min=0.7", "--brightness=0.1", "--hue=0.1", "--noexport"),
        ]
        workers = number if kind == "workers" else 1
        if workers == 1:
            flags.append(f"--num_cpu_devices={number}")
        started.append(cluster.start(workers, flags, folder / "log"))
        found[name] = folder / "job"
        # Several at a time: to trace a program takes one core.
        if name in ("4 replicas", "4 workers"):
            for processes in started:
                assert cluster.end(processes, 600) == [0] * len(processes), folder
            started.clear()
    return found


@pytest.fixture(scope="module")
def losses(runs):
    """Returns the loss at each step, by what the run ran on."""
    found = {}
    for name, job_dir in runs.items():
        lines = (job_dir / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found[name] = [row["loss"] for row in rows if row["kind"] == "train"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("several", SEVERAL)
def test_replicas_follow_the_loss_of_one_device(losses, several):
    assert len(losses["1 replica"]) == len(losses[several]) == STEPS
    assert losses[several] == pytest.approx(losses["1 replica"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("several", SEVERAL)
def test_replicas_see_the_same_examples(losses, several):
    # Before rounding has grown, one example more or less would show.
    assert losses[several][:3] == pytest.approx(losses["1 replica"][:3], abs=2e-6)
    assert losses["1 replica"][0] > losses["1 replica"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("several", SEVERAL)
def test_replicas_end_with_the_weights_of_one_device_bit_for_bit(runs, several):
    name = f"step-{STEPS:08d}"
    ours, theirs = (
        checkpoint.load(str(runs[n] / "checkpoints"), name).arrays
        for n in ("1 replica", several)
    )
    assert ours.keys() == theirs.keys()
    assert [k for k, v in ours.items() if (v != theirs[k]).any()] == []


@pytest.mark.slow
@pytest.mark.parametrize("several", SEVERAL)
def test_replicas_judge_as_one_device_does(runs, several):
    ours, theirs = (
        json.loads((runs[name] / "result.json").read_text())
        for name in ("1 replica", several)
    )
    for which in ("last", "test"):
        # The loss of an image depends on its batch in the last bits.
        assert ours[which] == pytest.approx(theirs[which], abs=1e-7)
