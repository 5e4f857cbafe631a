"""A save to a bucket that is cut off anywhere leaves a checkpoint to go on from."""

import json
import os
import subprocess
import sys

import pytest

# Saves and restores as a run does, by the saver alone. A number in the variable tells
# of which step it is.
PROCESS = """
import json, sys
from types import SimpleNamespace

import numpy as np
import keras
from trainer import checkpoint, checkpoint_folder, saver, saving

for line in sys.stdin:
    told = json.loads(line)
    directory, at = told["directory"], told.get("save")
    if at is None:
        found = checkpoint_folder.load_latest(directory)
        answer = [found.name, found.state["step"], np.unique(found.arrays["a"]).tolist()]
    else:
        job = SimpleNamespace(
            directories=SimpleNamespace(checkpoints=directory),
            settings=SimpleNamespace(keep_checkpoints=2, best_metric="val_loss"),
            variables={"a": keras.Variable(np.full([64, 64], at, "float32"))},
            state={"step": at, "evaluations": []},
            damaged=set(),
            fence=lambda: None,
        )
        try:
            with saver.Saver() as writer:
                writer.start(saving.save(job))
            answer = None
        except Exception as error:
            answer = str(error)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def ask(gcs):
    """Asks a process that saves and restores; TensorFlow tries nothing twice there."""
    environment = {**os.environ, **gcs.environment, "GCS_RETRY_CONFIG_MAX_RETRIES": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        to, told = process.stdin, process.stdout

        def ask(**question: object) -> object:
            print(json.dumps(question), file=to, flush=True)
            return json.loads(told.readline())

        yield ask
        to.close()


@pytest.mark.slow
@pytest.mark.parametrize("by", [{"drop_counts_writes_only": True}, {}])
def test_a_save_cut_off_at_any_request_leaves_a_good_checkpoint(
    by, gcs, gcs_bucket, ask
):
    cut = 0
    for n in range(1, 100):
        directory = f"gs://{gcs_bucket}/{n}"
        for step in (1, 2, 3):  # The next one deletes the first that is kept.
            assert ask(directory=directory, save=step) is None
        gcs.set_faults(drop_from=n, **by)
        failed = ask(directory=directory, save=4)
        gcs.set_faults()
        restored = ask(directory=directory)
        assert restored in (["step-00000003", 3, [3.0]], ["step-00000004", 4, [4.0]])
        if not failed:
            assert restored[1] == 4
            break
        cut += 1
        # And the run that goes on from there saves.
        assert ask(directory=directory, save=restored[1] + 1) is None
        assert ask(directory=directory)[1] == restored[1] + 1
    # Data, digest and pointer take two requests each, and two files are deleted.
    assert not failed and cut >= 8
