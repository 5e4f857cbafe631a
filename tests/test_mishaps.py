"""What goes wrong on the way ends in one line; what was saved stays and serves."""

import contextlib
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer import (
    checkpoint,
    checkpoint_folder,
    config,
    interruption,
    job,
    report,
    run_files,
    saving,
    standing,
    task,
    terminal,
    trained,
)
from trainer.judge import Judge

KEPT = "; step-00000002 is kept, the same command goes on from it"
SMALL = [
    *("--image_size=32", "--val_fraction=0.25", "--batch_size=2", "--num_pictures=1"),
    *("--eval_every_steps=2", "--total_steps=4", "--encoder_weights=none"),
    "--noexport",
]


@pytest.fixture
def data_dir(pets: Callable[..., str]) -> pathlib.Path:
    """Returns a data set: 3 examples to train on and 1 to validate in each of 2 files."""
    return pathlib.Path(pets(8, n_test=2, shards=2))


@pytest.fixture
def begun(data_dir: pathlib.Path, tmp_path: pathlib.Path, tiny_unet: None) -> list[str]:
    """Returns the command of a run of 4 steps that has saved a checkpoint at step 2."""
    return begin([f"--data_dir={data_dir}", f"--job_dir={tmp_path}/run", *SMALL])


def begin(args: list[str], *steps: int) -> list[str]:
    """Saves checkpoints as though steps had been made; returns the command."""
    settings = config.from_args(args)
    run = job.prepare(settings, config.directories(settings, {}))
    for step in steps or (2,):
        run.state["step"] = step
        saving.save(run)()
    return args


@pytest.fixture
def stopped(capfd: pytest.CaptureFixture, begun: list[str]) -> Callable[..., str]:
    """Runs a command that must stop on its way; returns its last line."""

    def run(*more: str, code: int = 1) -> str:
        assert task.main([*begun, *more]) == code
        out, err = capfd.readouterr()
        assert out == ""
        *log, line = err.splitlines()
        assert line.startswith("segtrainer: ")
        assert not [line for line in log if "Traceback" in line or "Error" in line]
        return line.removeprefix("segtrainer: ")

    return run


def file_of(data_dir: pathlib.Path, split: str, shard: int = 1) -> pathlib.Path:
    [path] = data_dir.glob(f"*/*/*-{split}.tfrecord-{shard:05d}-of-*")
    return path


def change(path: pathlib.Path, index: int, feature: str, value: Callable) -> None:
    """Rewrites a file with one feature of one of its examples changed."""
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    example = tf.train.Example.FromString(records[index])
    stored = example.features.feature[feature].bytes_list.value
    stored[0] = value(stored[0])
    records[index] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def flip_a_byte(path: pathlib.Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def same_checkpoint(tmp_path: pathlib.Path) -> bool:
    """Returns whether the checkpoint of step 2 is there, whole, and the only one."""
    directory = str(tmp_path / "run" / "checkpoints")
    return (
        checkpoint.load(directory, "step-00000002").state["step"] == 2
        and checkpoint_folder.names(directory) == ["step-00000002"]
        and checkpoint_folder.pointer(directory)["latest"] == "step-00000002"
    )


# ---------------------------------------------------------------------------
# Damaged data


def test_a_file_cut_short_is_named(stopped, data_dir, tmp_path):
    path = file_of(data_dir, "train")
    path.write_bytes(path.read_bytes()[:-20])
    line = stopped()
    assert line.startswith(f"{path} cannot be read beyond example 3: "), line
    assert line.endswith(KEPT) and same_checkpoint(tmp_path)


def test_a_file_cut_between_two_examples_is_named(stopped, data_dir, tmp_path):
    path = file_of(data_dir, "train")
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:2]:
            writer.write(record)
    assert stopped() == (
        f"{path} must hold 4 examples as its dataset_info.json says, got 2; prepare the "
        f"data set again{KEPT}"
    )
    assert same_checkpoint(tmp_path)


def test_a_file_with_a_flipped_byte_is_named(stopped, data_dir, tmp_path):
    path = file_of(data_dir, "train")
    flip_a_byte(path, path.stat().st_size - 20)
    line = stopped()
    assert line.startswith(f"{path} cannot be read beyond example 3: "), line
    assert line.endswith(KEPT) and same_checkpoint(tmp_path)


def test_a_file_that_vanishes_after_the_start_is_named(
    stopped, data_dir, tmp_path, monkeypatch
):
    path = file_of(data_dir, "train")
    write_config = run_files.write_config

    def and_then_it_is_gone(*args, **about) -> None:
        write_config(*args, **about)
        path.unlink()

    monkeypatch.setattr(run_files, "write_config", and_then_it_is_gone)
    line = stopped()
    assert line.startswith(f"{path} cannot be read beyond example 0: "), line
    assert "No such file" in line
    assert line.endswith(KEPT) and same_checkpoint(tmp_path)


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize(
    ("split", "index", "kept"),
    [("train", 2, 2), ("train", 0, 2), ("test", 0, 4)],
    ids=["train", "val", "test"],
)
def test_an_example_whose_jpeg_is_damaged_is_named(
    stopped, data_dir, tmp_path, split, index, kept, cache
):
    path = file_of(data_dir, split, shard=0)
    change(path, index, "image", lambda jpeg: jpeg[: len(jpeg) // 2])
    line = stopped(f"--cache={cache}")
    # The example at the head of each file is for validation, read after the last step.
    assert line.startswith(f"example {index} of {path} cannot be decoded: "), line
    assert line.endswith(KEPT.replace("2", str(kept)))


def test_an_example_with_an_unknown_mask_id_is_named(stopped, data_dir, tmp_path):
    path = file_of(data_dir, "train")
    mask = np.full((40, 40, 1), 4, np.uint8)
    change(path, 2, "segmentation_mask", lambda _: tf.io.encode_png(mask).numpy())
    change(path, 2, "image", lambda _: tf.io.encode_jpeg(mask.repeat(3, 2)).numpy())
    assert stopped() == f"example 2 of {path} must have mask ids 1..3, got [4]{KEPT}"
    assert same_checkpoint(tmp_path)


def test_an_example_whose_mask_has_another_size_is_named(stopped, data_dir, tmp_path):
    path = file_of(data_dir, "train")
    mask = np.ones((40, 41, 1), np.uint8)
    image = np.zeros((40, 42, 3), np.uint8)
    change(path, 2, "segmentation_mask", lambda _: tf.io.encode_png(mask).numpy())
    change(path, 2, "image", lambda _: tf.io.encode_jpeg(image).numpy())
    assert stopped() == (
        f"example 2 of {path} must have a mask of its image's size, got image (40, 42) "
        f"and mask (40, 41){KEPT}"
    )
    assert same_checkpoint(tmp_path)


# ---------------------------------------------------------------------------
# The disk, the loss, the person


@contextlib.contextmanager
def no_room_for_checkpoints() -> Iterator[None]:
    """Lets no file grow beyond 512 bytes while a checkpoint is saved."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = saving.save

    def saved_on_a_full_disk(run: job.Job) -> Callable[[], None]:
        write = save(run)

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
            try:
                write()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        return work

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(saving, "save", saved_on_a_full_disk)
        yield


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room_again(
    stopped, begun, tmp_path, capfd
):
    path = tmp_path / "run" / "checkpoints" / "step-00000004.npz"
    with no_room_for_checkpoints():
        line = stopped()
    assert str(path) in line and line.endswith(KEPT), line
    assert checkpoint_folder.pointer(str(path.parent))["latest"] == "step-00000002"
    assert task.main(begun) == 0
    log = capfd.readouterr().err
    assert "Passed over: " in log and "step-00000004.npz" in log
    assert "Going on from step-00000002" in log
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["step"] == 4


def test_a_loss_that_is_not_finite_ends_a_cloud_job_for_good(
    data_dir, tiny_unet, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("CLOUD_ML_JOB_ID", "job-7")
    args = [f"--data_dir={data_dir}", f"--job_dir={tmp_path}/run", *SMALL]
    args = begin([*args, "--learning_rate=1e38"])
    assert task.main(args) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    found = re.fullmatch(
        r"segtrainer: (the loss at step (\d) is (nan|inf); try a lower --learning_rate "
        r"or --clip_norm in a new --job_dir)" + "; step-00000002 is kept",
        line,
    )
    assert found, line
    assert json.loads((tmp_path / "run" / "failed.json").read_text()) == {
        "step": int(found[2]),
        "reason": found[1],
        "cloud_job_id": "job-7",
    }
    assert same_checkpoint(tmp_path)

    # The service starts the job again: it leaves at once. A person's restart goes on.
    assert task.main(args) == 2
    assert capfd.readouterr().err == (
        f"segtrainer: job job-7 failed for good at step {found[2]}: {found[1]}; submit "
        "a new job to go on from the last checkpoint\n"
    )
    monkeypatch.delenv("CLOUD_ML_JOB_ID")
    assert task.main(args) == 1
    assert "Going on from step-00000002" in capfd.readouterr().err


@pytest.fixture
def heard():
    """Lets SIGINT interrupt, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def notice(monkeypatch: pytest.MonkeyPatch) -> Iterator[interruption.Notice]:
    """Returns the notice that the next run heeds, which no signal reaches."""
    made = interruption.Notice(60, last_line=str)
    monkeypatch.setattr(
        interruption, "listening", lambda *_: contextlib.nullcontext(made)
    )
    yield made
    made.end()  # Or it would end the tests after its time of grace.


@pytest.mark.parametrize(("told_by", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_run_that_is_told_to_stop_saves_at_the_next_step(
    told_by, code, stopped, begun, notice, monkeypatch, tmp_path, capfd
):
    progress = report.Reporter.progress

    def told(self: report.Reporter, *args: Any) -> None:
        progress(self, *args)
        notice.tell(told_by, code)

    monkeypatch.setattr(report.Reporter, "progress", told)
    assert stopped(code=code) == (
        f"interrupted after step 3 ({told_by}); step-00000003 is kept, the same command "
        "goes on from it"
    )
    directory = str(tmp_path / "run" / "checkpoints")
    assert checkpoint_folder.pointer(directory)["latest"] == "step-00000003"


def test_a_run_that_is_told_to_stop_while_it_evaluates_does_so_again_later(
    stopped, begun, notice, monkeypatch, tmp_path, capfd
):
    metrics = Judge.metrics

    def evaluated() -> list[int]:
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        return [r["step"] for r in map(json.loads, lines) if r["kind"] == "eval"]

    def told(self: Judge, *args: Any) -> dict:
        notice.tell("SIGTERM")
        return metrics(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Judge, "metrics", told)
        line = stopped(code=143)
    # Saved at step 2, which is to be judged, before: nothing is written over.
    assert line.startswith("interrupted after step 2 (SIGTERM); step-00000002 is kept")
    assert evaluated() == []
    notice.reason = None
    assert task.main(begun) == 0
    capfd.readouterr()
    assert evaluated() == [2, 4]


@pytest.mark.usefixtures("heard")
def test_ctrl_c_before_the_first_step_says_so(stopped, notice, tmp_path, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        notice.tell("SIGINT", 130)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(job, "prepare", interrupted)
    assert stopped(code=130) == "interrupted before the first step"
    assert same_checkpoint(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("heard")  # A child would ignore what its parent ignores.
def test_ctrl_c_stops_a_process_that_trains(data_dir, tmp_path):
    command = [sys.executable, "-m", "trainer.task", f"--data_dir={data_dir}"]
    command += [f"--job_dir={tmp_path}/run", *SMALL, "--total_steps=100000"]
    quiet = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    with subprocess.Popen(
        *(command,),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=quiet,
    ) as process:
        log = []
        assert process.stderr is not None
        while not any(line.startswith("[4]") for line in log):
            log.append(process.stderr.readline())
            assert log[-1], log  # It must not end by itself.
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    *log, line = err.splitlines()
    # The step that is under way may still tell of itself.
    assert out == "" and log.count("Stopping: SIGINT. Once more leaves at once") == 1
    assert sum(not line.startswith("[") for line in log) == 1, err
    assert re.fullmatch(
        r"segtrainer: interrupted after step (\d+) \(SIGINT\); step-0*\1 is kept, the same command "
        "goes on from it",
        line,
    )


def test_of_tensorflows_messages_the_line_that_says_what_happened_is_shown():
    error = tf.errors.ResourceExhaustedError(
        *(None, None),
        "Graph execution error:\n\nDetected at node UNet/add defined at (most recent "
        'call last):\n  File "task.py", line 1, in <module>\n\n<stack traces '
        "unavailable>\nOOM when allocating tensor with shape[64,256]\n\t [[{{node}}]]",
    )
    assert terminal.one_line(error) == "OOM when allocating tensor with shape[64,256]"


@pytest.mark.parametrize("text", ["", " ", "ValueError: ", "{{function_node x}} "])
def test_a_mishap_that_says_nothing_is_told_by_its_kind(text):
    assert terminal.one_line(ValueError(text)) == "ValueError"


# ---------------------------------------------------------------------------
# Damaged checkpoints


def cut_short(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: pathlib.Path) -> None:
    flip_a_byte(path, path.stat().st_size // 2)


def without_digest(path: pathlib.Path) -> None:
    path.with_name(path.name + ".sha256").unlink()


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (cut_short, "must fit its digest, got "),
        (flipped, "must fit its digest, got "),
        (without_digest, "must have its data and digest, got one only"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage, rule, data_dir, tmp_path, tiny_unet, capfd
):
    args = [f"--data_dir={data_dir}", f"--job_dir={tmp_path}/run", *SMALL]
    args = begin(args, 2, 3)
    path = tmp_path / "run" / "checkpoints" / "step-00000003.npz"
    damage(path)
    assert task.main(args) == 0
    log = capfd.readouterr().err
    assert f"Passed over: {path} {rule}" in log
    assert "Going on from step-00000002, the newest whole checkpoint" in log
    assert checkpoint_folder.pointer(str(path.parent))["latest"] == "step-00000004"


def test_a_run_whose_best_checkpoint_is_damaged_finishes_with_the_last(
    begun, tmp_path, capfd, monkeypatch
):
    save = saving.save

    def spoilt(run: job.Job) -> Callable[[], None]:
        write, at = save(run), run.state["step"]

        def work() -> None:
            write()
            if at == 4:  # The first of equals is the best: that of step 4.
                cut_short(tmp_path / "run" / "checkpoints" / "step-00000004.npz")

        return work

    monkeypatch.setattr(saving, "save", spoilt)
    monkeypatch.setattr(
        standing,
        "best",
        lambda run: max(run.state["evaluations"], key=lambda e: e["step"] == 4),
    )
    assert task.main([*begun, "--total_steps=6"]) == 0
    log = capfd.readouterr().err
    path = tmp_path / "run" / "checkpoints" / "step-00000004.npz"
    assert f"Passed over for the last: {path} must fit its digest" in log
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best"]["step"] == 6
    # Which is what the commands that look at the run are given, too.
    found = checkpoint_folder.pointer(str(path.parent))
    assert found == {"latest": "step-00000006", "best": "step-00000006"}
    assert trained.load(str(tmp_path / "run")).validation == result["best"]


def test_a_best_checkpoint_stays_while_one_that_needs_it_does(begun, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    settings = config.from_args(begun)
    run = job.prepare(settings, config.directories(settings, {}))
    found = {4: 0.5, 6: 0.4, 8: 0.6}
    for step in (4, 6, 8):
        run.state["step"] = step
        run.state["evaluations"].append({"step": step, "val_mean_iou": found[step]})
        saving.save(run)()
    assert checkpoint_folder.names(str(folder)) == [
        f"step-0000000{n}" for n in (8, 6, 4)
    ]
    cut_short(folder / "step-00000008.npz")
    run = job.prepare(settings, config.directories(settings, {}))
    assert (run.latest, run.damaged) == ("step-00000006", {"step-00000008"})
    for step in (7, 9):
        run.state["step"] = step
        saving.save(run)()
    at = checkpoint_folder.pointer(str(folder))
    assert at == {"latest": "step-00000009", "best": "step-00000004"}
    checkpoint.load(str(folder), at["best"])
    # The damaged one takes no good one's place among the two that stay.
    assert checkpoint_folder.names(str(folder)) == [
        f"step-0000000{n}" for n in (9, 7, 4)
    ]


def test_a_warm_up_as_long_as_the_run_is_told(begun, tmp_path, capfd):
    args = [*begun, f"--job_dir={tmp_path}/new"]
    assert task.main([*args, "--warmup_steps=4"]) == 0
    log = capfd.readouterr().err
    assert "never reaches 0.001: warmup_steps is 4, its steps are 4; give fewer" in log
    assert task.main([*args, f"--job_dir={tmp_path}/newer", "--warmup_steps=3"]) == 0
    assert "never reaches" not in capfd.readouterr().err
