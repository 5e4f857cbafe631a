"""A run that was stopped and started again is the run that nobody stopped."""

import itertools
import json
import pathlib
import random
import socket
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import kill
from tests.runs import assert_same_run, events
from trainer import (
    checkpoint,
    checkpoint_folder,
    config,
    data,
    job,
    saving,
    standing,
    task,
)

SMALL = ["--image_size=32", "--num_pictures=1", "--cache=memory", "--log_every_steps=1"]
SMALL += ["--noexport"]


@pytest.fixture
def data_dir(pets):
    """Returns a data set: 3 examples to train on and 1 to validate in each of 2 files."""
    return pets(8, n_test=2, shards=2)


@pytest.fixture
def command(data_dir, tmp_path, tiny_unet):
    """Makes commands of runs that take 3 steps an epoch."""

    def make(name, *more):
        return [
            *(f"--data_dir={data_dir}", f"--job_dir={tmp_path / name}", *SMALL),
            *("--val_fraction=0.25", "--batch_size=2", *more),
        ]

    return make


@pytest.fixture
def cpus(monkeypatch):
    """Lets a run take the devices that conftest made; they are made once a process."""
    monkeypatch.setattr(
        tf.config, "set_logical_device_configuration", lambda cpu, devices: None
    )


def rows(job_dir, kind="train"):
    text = (job_dir / "metrics.jsonl").read_text()
    return [row for row in map(json.loads, text.splitlines()) if row["kind"] == kind]


def losses(job_dir):
    return {row["step"]: row["loss"] for row in rows(job_dir)}


def ages(directory: pathlib.Path) -> dict[str, int]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in files}


# ---------------------------------------------------------------------------
# Killed


@pytest.mark.slow
def test_killed_runs_end_with_the_weights_and_rows_of_the_one_that_was_not(
    data_dir, tmp_path, monkeypatch
):
    def run(name, kills, within_seconds=0.0):
        job_dir = tmp_path / name
        flags = [
            *("--deterministic", *SMALL, "--batch_size=4", "--total_steps=12"),
            *("--encoder_weights=none", "--val_fraction=0.25", "--eval_every_steps=5"),
            *("--checkpoint_every_steps=3", "--schedule=cosine", "--warmup_steps=4"),
        ]
        command = [sys.executable, "-m", "trainer.task", f"--data_dir={data_dir}"]
        return kill.run_killed(
            *([*command, f"--job_dir={job_dir}", *flags], job_dir, kills, rng),
            within_seconds=within_seconds,
        )

    rng = random.Random(0)
    began = time.monotonic()
    run("reference", kills=0)
    seconds = time.monotonic() - began
    for name, save_share, kills in (("a", 0, 1), ("b", 1, 1), ("c", 0.5, 2)):
        monkeypatch.setattr(kill, "SAVE_SHARE", save_share)
        killed = run(name, kills, within_seconds=0.9 * seconds)
        assert killed
        print(killed)  # Shown where they differ.
        assert_same_run(tmp_path / "reference", tmp_path / name)


# ---------------------------------------------------------------------------
# Started again


def test_a_restart_in_an_epoch_goes_on_with_the_very_next_example(
    command, tmp_path, monkeypatch
):
    streams = []

    def recorded(*args, **settings):
        seen = []
        streams.append(seen)
        for element in train_elements(*args, **settings):
            seen.append(element[:2])  # id, epoch
            yield element

    train_elements = data.train_elements
    monkeypatch.setattr(data, "train_elements", recorded)
    assert task.main(command("whole", "--total_steps=7")) == 0
    whole = streams[-1]
    assert task.main(command("halves", "--total_steps=5")) == 0  # 2 of 3 of epoch 2
    assert task.main(command("halves", "--total_steps=7")) == 0
    # Streams read a little ahead.
    found = list(itertools.islice(streams[-1], 4))
    assert found == whole[10:14] and len(found) == 4
    assert {epoch for _, epoch in whole[10:12]} == {1}
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"))


def test_more_epochs_are_not_a_difference(command, tmp_path, capfd, monkeypatch):
    assert task.main(command("whole", "--epochs=2")) == 0
    assert task.main(command("halves", "--epochs=1")) == 0
    capfd.readouterr()
    first = json.loads((tmp_path / "halves" / "result.json").read_text())
    first["seconds_of"]["exporting"] = 1000.0
    (tmp_path / "halves" / "result.json").write_text(json.dumps(first))
    settings = config.from_args(command("halves", "--epochs=2"))
    for host in ("first", "second"):  # Preempted on the one before it saved.
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        job.prepare(settings, config.directories(settings, {}))
        about = json.loads((tmp_path / "halves" / "config.json").read_text())
        assert about["host"] == host
    later = time.time() + 3600
    monkeypatch.setattr(task, "_process_start", lambda: later)
    assert task.main(command("halves", "--epochs=2")) == 0
    assert "Going on from step-00000003" in capfd.readouterr().err
    assert list(losses(tmp_path / "halves")) == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"))
    result = json.loads((tmp_path / "halves" / "result.json").read_text())
    assert (result["step"], result["epoch"]) == (6, 2)
    assert result["seconds_of"]["lost_to_restarts"] == 0  # The run had ended.
    assert result["seconds_of"]["exporting"] >= 1000  # After its last save.
    # Only the picture of the end is in another place.
    doubled = {
        key: n for key, n in events(tmp_path / "halves" / "logs").items() if n > 1
    }
    assert not doubled


def test_a_run_of_2_replicas_keeps_its_global_batch_on_1(command, tmp_path, cpus):
    two = ["--num_cpu_devices=2"]
    assert task.main(command("whole", "--total_steps=6", *two)) == 0
    assert task.main(command("moved", "--total_steps=4", *two)) == 0
    assert task.main(command("moved", "--total_steps=6")) == 0
    about = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert (about["replicas"], about["global_batch_size"]) == (1, 4)
    state = checkpoint_folder.load_latest(str(tmp_path / "moved" / "checkpoints")).state
    assert state["global_batch_size"] == 4
    expected = pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert losses(tmp_path / "moved") == expected


def test_a_run_of_1_replica_keeps_its_global_batch_on_2(command, tmp_path, cpus):
    assert task.main(command("moved", "--total_steps=2")) == 0
    assert task.main(command("moved", "--total_steps=4", "--num_cpu_devices=2")) == 0
    about = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert (about["replicas"], about["global_batch_size"]) == (2, 2)


def test_a_restart_goes_on_from_the_last_save_between_evaluations(
    command, tmp_path, capfd, monkeypatch
):
    class Killed(BaseException):
        pass

    def killed(run, save=saving.save):
        save(run)()
        if run.state["step"] == 5:
            raise Killed
        return lambda: None

    more = ["--total_steps=7", "--log_every_steps=3", "--checkpoint_every_steps=5"]
    more += ["--eval_every_steps=4"]
    assert task.main(command("whole", *more)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", killed)
        with pytest.raises(Killed):
            task.main(command("halves", *more))
    capfd.readouterr()
    assert task.main(command("halves", *more)) == 0
    assert "Going on from step-00000005" in capfd.readouterr().err
    # The row of step 6 is the mean over steps 4 to 6, of which the restart made one.
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"))
    assert [row["step"] for row in rows(tmp_path / "halves", "eval")] == [4, 7]
    assert set(events(tmp_path / "halves" / "logs").values()) == {1}


def test_a_restart_whose_end_lies_behind_it_is_evaluated_and_ends(
    command, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def killed(run, save=saving.save):
        save(run)()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", killed)
        with pytest.raises(Killed):
            task.main(command("run", "--total_steps=9", "--checkpoint_every_steps=2"))
    assert task.main(command("run", "--total_steps=1")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["step"], result["last"]["step"]) == (2, 2)
    assert [row["step"] for row in rows(tmp_path / "run", "eval")] == [2]


def test_a_run_that_is_done_says_so_and_leaves_its_files_alone(
    command, tmp_path, capfd, monkeypatch
):
    args = command("run", "--total_steps=4", "--eval_every_steps=2")
    assert task.main(args) == 0
    first = capfd.readouterr().out
    before = ages(tmp_path / "run")
    assert len(before) > 6
    monkeypatch.setattr(
        socket, "gethostname", lambda: "another"
    )  # Looked at from there.
    assert task.main(args) == 0
    out, err = capfd.readouterr()
    assert "This run is done: nothing left to train after step 4" in err
    assert out == first  # the table and the paths again
    assert ages(tmp_path / "run") == before


def test_init_from_starts_a_new_run_at_step_0_from_the_best_weights_of_another(
    command, tmp_path, monkeypatch
):
    monkeypatch.setattr(standing, "best", lambda run: run.state["evaluations"][0])
    assert task.main(command("a", "--total_steps=4", "--eval_every_steps=2")) == 0
    directory = str(tmp_path / "a" / "checkpoints")
    assert checkpoint_folder.pointer(directory) == {
        "latest": "step-00000004",
        "best": "step-00000002",
    }
    best = checkpoint.load(directory, "step-00000002").arrays
    last = checkpoint.load(directory, "step-00000004").arrays

    def prepared(init_from):
        args = command("b", "--seed=5", f"--init_from={init_from}")
        settings = config.from_args(args)
        return job.prepare(settings, config.directories(settings, {}))

    for init_from, expected in (
        (tmp_path / "a", best),
        (f"{directory}/step-00000004.npz", last),
    ):
        run = prepared(init_from)
        assert (run.state["step"], run.latest, run.state["seconds"]) == (0, None, 0)
        found = checkpoint.values(run.variables)
        for name, value in found.items():
            if name.startswith("model/"):
                np.testing.assert_array_equal(value, expected[name])
            elif name.startswith("optimizer/") and "learning_rate" not in name:
                assert not value.any(), name


def test_deterministic_asks_tensorflow_for_it_and_nothing_else_does(
    command, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: asked.append(True)
    )
    for flags, times in (((), 0), (("--deterministic",), 1)):
        settings = config.from_args(command(f"run-{times}", *flags))
        job.prepare(settings, config.directories(settings, {}))
        assert len(asked) == times


def test_a_restart_of_a_run_that_began_from_another_does_not_begin_again(
    command, tmp_path, capfd
):
    assert task.main(command("a", "--total_steps=1")) == 0
    args = command("b", f"--init_from={tmp_path / 'a'}")
    assert task.main([*args, "--total_steps=2"]) == 0
    capfd.readouterr()
    assert task.main([*args, "--total_steps=3"]) == 0
    assert "Going on from step-00000002" in capfd.readouterr().err
    assert list(losses(tmp_path / "b")) == [1, 2, 3]
