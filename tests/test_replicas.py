"""The same run on 1, 2 and 4 replicas: the same examples, the same loss."""

import json
import subprocess
import sys

import pytest

from trainer import checkpoint

STEPS = 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the job_dir of a run on the bundled sample, by number of replicas."""
    found = {}
    for replicas in (1, 2, 4):
        job_dir = tmp_path_factory.mktemp(f"replicas-{replicas}") / "job"
        command = [
            *(sys.executable, "-m", "trainer.task", f"--job_dir={job_dir}"),
            *("--global_batch_size=64", f"--num_cpu_devices={replicas}"),
            *(f"--total_steps={STEPS}", f"--eval_every_steps={STEPS}"),
            *("--log_every_steps=1", "--limit_eval_examples=8"),
        ]
        subprocess.run(command, check=True, timeout=600)
        found[replicas] = job_dir
    return found


@pytest.fixture(scope="module")
def losses(runs):
    """Returns the loss at each step, by number of replicas."""
    found = {}
    for replicas, job_dir in runs.items():
        lines = (job_dir / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found[replicas] = [row["loss"] for row in rows if row["kind"] == "train"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_follow_the_loss_of_one_device(losses, replicas):
    assert len(losses[1]) == len(losses[replicas]) == STEPS
    assert losses[replicas] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_see_the_same_examples(losses, replicas):
    # Before rounding has grown, one example more or less would show.
    assert losses[replicas][:3] == pytest.approx(losses[1][:3], abs=2e-6)
    assert losses[1][0] > losses[1][-1]


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_end_with_the_weights_of_one_device_bit_for_bit(runs, replicas):
    name = f"step-{STEPS:08d}"
    one, several = (
        checkpoint.load(str(runs[n] / "checkpoints"), name).arrays
        for n in (1, replicas)
    )
    assert one.keys() == several.keys()
    assert [k for k, v in one.items() if (v != several[k]).any()] == []
