"""The loop: what is due when, what ends a run, what a run leaves."""

import functools
import gc
import json
import math
import pathlib
import time
import types
import weakref

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib import figure

from tests import runs
from trainer import (
    checkpoint,
    checkpoint_folder,
    config,
    evaluation_step,
    job,
    judge,
    model,
    records,
    streams,
    task,
    train,
)

SMALL = ["--image_size=32", "--num_pictures=1", "--cache=memory", "--log_every_steps=1"]
SMALL += ["--noexport"]


@pytest.fixture
def data_dir(pets):
    """Returns a data set: 3 examples to train on and 1 to validate in each of 2 files."""
    return pets(8, n_test=3, shards=2)


@pytest.fixture
def trained(data_dir, tmp_path, capfd, monkeypatch):
    """Runs a job of 3 steps an epoch; returns its job_dir."""
    runs = []
    # That of the tests is minutes ago.
    monkeypatch.setattr(task, "_process_start", time.time)

    def run(*more, code=0):
        job_dir = tmp_path / f"run-{len(runs)}"
        runs.append(job_dir)
        args = [f"--data_dir={data_dir}", f"--job_dir={job_dir}", *SMALL]
        assert (
            task.main([*args, "--val_fraction=0.25", "--batch_size=2", *more]) == code
        )
        return job_dir

    return run


def rows(job_dir, kind="train"):
    text = (job_dir / "metrics.jsonl").read_text()
    return [row for row in map(json.loads, text.splitlines()) if row["kind"] == kind]


def losses(job_dir):
    return [row["loss"] for row in rows(job_dir)]


def read(job_dir, name="result"):
    return json.loads((job_dir / f"{name}.json").read_text())


# ---------------------------------------------------------------------------
# What is due when


def test_a_run_leaves_what_it_promises(trained, tiny_unet, monkeypatch):
    monkeypatch.setattr(train, "CALL_SECONDS", 1e9)
    job_dir = trained("--epochs=2")
    # Evaluated each epoch where nothing else is asked for.
    assert [row["step"] for row in rows(job_dir, "eval")] == [3, 6]
    assert [row["step"] for row in rows(job_dir)] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows(job_dir)] == [n / 3 for n in range(1, 7)]
    rates = [row["learning_rate"] for row in rows(job_dir)]
    assert rates == pytest.approx([1e-3] * 6)
    result = read(job_dir)
    assert (result["step"], result["stopped_by"], result["complete"]) == (
        6,
        "epochs",
        True,
    )
    assert result["last"]["step"] == 6
    assert result["test"]["mean_iou"] is not None
    assert result["peak_memory_bytes"] > 1e6
    assert 0 < result["train_seconds"] < result["total_seconds"] + 1
    for path in result["pictures"].values():
        assert pathlib.Path(path).is_file()
    pictures = {path.name for path in (job_dir / "pictures").iterdir()}
    steps = {f"step-{step:08d}.png" for step in (0, 3, 6)}
    assert pictures == steps | {"augmented.png", "curves.png", "predictions.png"}
    assert read(job_dir, "config")["dataset"]["train_examples"] == 6


@pytest.mark.parametrize("steps", [1, 2])
def test_a_last_step_that_was_saved_and_not_pointed_to_is_pointed_to(
    data_dir, tmp_path, tiny_unet, monkeypatch, steps
):
    args = [f"--data_dir={data_dir}", f"--job_dir={tmp_path / 'run'}", *SMALL]
    args += ["--val_fraction=0.25", "--batch_size=2", "--eval_every_steps=1"]
    last = checkpoint.name_of(steps)
    move = checkpoint_folder.move_pointer

    def cut(directory, *, latest, best):
        if latest == last:
            raise OSError("no space left")
        move(directory, latest=latest, best=best)

    monkeypatch.setattr(checkpoint_folder, "move_pointer", cut)
    assert task.main([*args, f"--total_steps={steps}"]) == 1
    monkeypatch.setattr(checkpoint_folder, "move_pointer", move)
    assert task.main([*args, f"--total_steps={steps}"]) == 0
    best = read(tmp_path / "run")["best"]["step"]
    pointer = checkpoint_folder.pointer(str(tmp_path / "run" / "checkpoints"))
    assert pointer == {"latest": last, "best": checkpoint.name_of(best)}


def test_images_of_training_and_those_that_are_judged_may_differ_in_size(
    trained, monkeypatch
):
    seen = []
    make, evaluate = train.step.make_train_steps, judge.evaluation_step.make_evaluate

    def noting(made):
        def call(batches, *more):
            seen.append(batches.element_spec[0].shape[1])
            return made(batches, *more)

        return call

    monkeypatch.setattr(
        train.step,
        "make_train_steps",
        lambda *args, **more: noting(make(*args, **more)),
    )
    monkeypatch.setattr(
        evaluation_step, "make_evaluate", lambda *args: noting(evaluate(*args))
    )
    flags = ["--image_size=64", "--train_image_size=32", "--crop_scale_min=0.5"]
    job_dir = trained("--total_steps=1", *flags)
    assert seen == [32, 64, 64]
    assert read(job_dir)["test"]["mean_iou"] is not None


def test_several_steps_in_a_call_give_the_losses_of_one_step_a_call(
    trained, tiny_unet, monkeypatch
):
    calls = []
    make = train.step.make_train_steps

    def counted(*args, **settings):
        run = make(*args, **settings)

        def steps(batches, n):
            calls.append(n)
            return run(batches, n)

        return steps

    monkeypatch.setattr(train.step, "make_train_steps", counted)
    monkeypatch.setattr(train, "CALL_SECONDS", 1e9)
    more = ["--total_steps=9", "--eval_every_steps=9", "--log_every_steps=4"]
    several = trained(*more)
    assert calls == [1, 1, 2, 4, 1]  # Two to learn how long one takes.
    calls.clear()
    monkeypatch.setattr(train, "CALL_SECONDS", 0.0)
    single = trained(*more)
    assert calls == [1] * 9
    assert [row["step"] for row in rows(single)] == [4, 8, 9]
    assert losses(several) == pytest.approx(losses(single), rel=1e-4)
    # A row is the mean over the steps since the row before.
    each = losses(trained(*more, "--log_every_steps=1"))
    expected = [np.mean(each[:4]), np.mean(each[4:8]), each[8]]
    assert losses(single) == pytest.approx(expected, rel=1e-4)


def test_autograph_rewrites_no_layer_and_no_decoding(trained, monkeypatch):
    seen = set()

    def told(function):
        @functools.wraps(function)
        def telling(*args, **kwargs):
            context = tf.__internal__.autograph.control_status_ctx()
            seen.add((function.__name__, context.status.name))
            return function(*args, **kwargs)

        return telling

    for of, name in ((keras.layers.Conv2D, "call"), (records, "decode")):
        monkeypatch.setattr(of, name, told(getattr(of, name)))
    monkeypatch.setattr(model, "build_unet", conftest.one_layer)
    trained("--total_steps=2")
    # Also called by themselves, the layer when it is built, as nobody's program.
    assert {status for _, status in seen} == {"UNSPECIFIED", "DISABLED"}
    assert {name for name, status in seen if status == "DISABLED"} == {"call", "decode"}


def test_rates_in_the_rows_are_those_of_the_schedule(trained, tiny_unet):
    job_dir = trained(
        *("--total_steps=6", "--eval_every_steps=6", "--warmup_steps=2"),
        *("--schedule=cosine", "--optimizer=adamw", "--weight_decay=0.01"),
        "--learning_rate=0.01",
    )
    # Of the steps still to make: after n steps the rate of the one with index n.
    expected = [0.005] + [0.005 * (1 + math.cos(math.pi * n / 4)) for n in range(5)]
    found = [row["learning_rate"] for row in rows(job_dir)]
    assert found == pytest.approx(expected, abs=1e-8)


def test_limits_leave_out_examples(trained, tiny_unet):
    job_dir = trained(
        *("--limit_train_examples=2", "--limit_eval_examples=1", "--epochs=2"),
        "--batch_size=1",
    )
    about = read(job_dir, "config")["dataset"]
    assert (about["train_examples"], about["val_examples"]) == (2, 1)
    assert read(job_dir)["step"] == 4


def test_profile_steps_writes_a_profile(trained, tiny_unet):
    job_dir = trained("--total_steps=4", "--eval_every_steps=4", "--profile_steps=1,3")
    assert list((job_dir / "logs").glob("plugins/profile/*/*.xplane.pb"))


def test_examples_that_are_drawn_after_each_evaluation_are_read_once(
    trained, tiny_unet, monkeypatch
):
    read, splits = streams.first_eval_examples, []

    def recorded(dataset, split, *args, **settings):
        splits.append(split)
        return read(dataset, split, *args, **settings)

    monkeypatch.setattr(streams, "first_eval_examples", recorded)
    job_dir = trained("--total_steps=3", "--eval_every_steps=1")
    drawn = [path.name for path in sorted((job_dir / "pictures").glob("step-*.png"))]
    assert drawn == [f"step-{at:08d}.png" for at in range(4)]
    assert len(splits) == 2 and splits[0] is not splits[1]  # Validation's, test's.


def test_an_evaluation_leaves_neither_figure_nor_stream_in_memory(
    trained, tiny_unet, monkeypatch
):
    made, left = [], []
    make, validate = streams.eval_batches, judge.Judge.validate

    def recorded(*args, **settings):
        stream = make(*args, **settings)
        made.append(weakref.ref(stream))
        return stream

    def validated(one):
        validate(one)
        figures = [x for x in gc.get_objects() if isinstance(x, figure.Figure)]
        left.append((len(figures), sum(stream() is not None for stream in made)))

    monkeypatch.setattr(streams, "eval_batches", recorded)
    monkeypatch.setattr(judge.Judge, "validate", validated)
    gc.disable()  # Python would look by itself, some day.
    try:
        trained("--total_steps=3", "--eval_every_steps=1")
    finally:
        gc.enable()
    assert len(made) >= 3 and left == [(0, 0)] * 3


# ---------------------------------------------------------------------------
# What ends a run


def test_max_minutes_ends_a_run_with_an_evaluation_and_a_save(trained, tiny_unet):
    job_dir = trained("--epochs=100", "--max_minutes=0.0001")
    result = read(job_dir)
    assert (result["stopped_by"], result["step"]) == ("max_minutes", 1)
    assert [row["step"] for row in rows(job_dir, "eval")] == [1]
    latest = checkpoint_folder.pointer(str(job_dir / "checkpoints"))["latest"]
    assert latest == "step-00000001"


def test_weights_that_are_not_finite_are_not_saved(
    trained, tiny_unet, monkeypatch, capfd
):
    make = train.step.make_train_steps

    def spoilt(strategy, model, optimizer, **settings):
        run = make(strategy, model, optimizer, **settings)

        def steps(batches, n):
            found = run(batches, n)
            if int(optimizer.iterations) == 2:  # The loss of this step was finite.
                model.weights[0].assign(model.weights[0].value * np.inf)
            return found

        return steps

    monkeypatch.setattr(train.step, "make_train_steps", spoilt)
    job_dir = trained("--total_steps=3", "--checkpoint_every_steps=1", code=1)
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("segtrainer: after step 2 model/logits/kernel is not finite")
    assert "step-00000001 is kept" in line
    assert read(job_dir, "failed")["step"] == 2
    assert checkpoint_folder.names(str(job_dir / "checkpoints")) == ["step-00000001"]


@pytest.fixture
def scored(monkeypatch):
    """Gives the evaluations of validation the figures that a test asks for."""
    told, splits = {}, []
    measured = judge.Judge.metrics

    def metrics(self, split, name):
        splits.append(name)
        found, confusion = measured(self, split, name)
        if name == "val":
            at = splits.count("val") - 1
            found |= {metric: values[at] for metric, values in told.items()}
        return found, confusion

    monkeypatch.setattr(judge.Judge, "metrics", metrics)
    return told, splits


def test_early_stopping_counts_the_evaluations_without_a_better_one(
    trained, tiny_unet, scored
):
    scored[0]["mean_iou"] = [0.5, 0.6, 0.6, 0.59, 0.9]
    job_dir = trained(
        "--eval_every_steps=1", "--early_stopping_evals=2", "--total_steps=5"
    )
    result = read(job_dir)
    assert (result["stopped_by"], result["step"]) == ("early_stopping_evals", 4)
    assert result["best"]["step"] == 2  # the first of equals


@pytest.mark.parametrize(
    ("best_metric", "step"), [("val_mean_iou", 2), ("val_loss", 1)]
)
def test_test_is_evaluated_once_with_the_checkpoint_best_by_its_metric(
    trained, tiny_unet, scored, monkeypatch, best_metric, step
):
    told, splits = scored
    told |= {"mean_iou": [0.1, 0.9, 0.5, 0.4], "loss": [0.1, 0.9, 0.5, 0.4]}
    models = []
    make = evaluation_step.make_evaluate

    def kept(strategy, model, names):
        models.append(model)
        return make(strategy, model, names)

    monkeypatch.setattr(evaluation_step, "make_evaluate", kept)
    job_dir = trained(
        "--total_steps=4", "--eval_every_steps=1", f"--best_metric={best_metric}"
    )
    assert splits == ["val"] * 4 + ["test"]
    assert read(job_dir)["best"]["step"] == step
    name = f"step-{step:08d}"
    directory = str(job_dir / "checkpoints")
    assert checkpoint_folder.pointer(directory)["best"] == name
    # Kept, though two newer ones are too; and what the test split was shown to.
    arrays = checkpoint.load(directory, name).arrays
    for variable, array in checkpoint.named_variables(models[0]).items():
        np.testing.assert_array_equal(array.numpy(), arrays[variable])


# ---------------------------------------------------------------------------
# Tuner


def test_only_a_trial_tells_the_tuner(trained, tiny_unet, tmp_path, monkeypatch):
    told = tmp_path / "hypertune" / "output.metrics"
    more = ["--total_steps=2", "--eval_every_steps=1"]
    trained(*more)
    assert not told.exists()
    monkeypatch.setenv("CLOUD_ML_TRIAL_ID", "3")
    job_dir = trained(*more, "--hp_metric=val_pixel_accuracy")
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    found = [
        (int(line["global_step"]), float(line["val_pixel_accuracy"])) for line in lines
    ]
    assert found == [
        (row["step"], row["val_pixel_accuracy"]) for row in rows(job_dir, "eval")
    ]
    assert {line["trial"] for line in lines} == {"3"}


# ---------------------------------------------------------------------------
# The U-Net


@pytest.mark.slow
def test_the_loss_falls_on_a_small_set(trained):
    job_dir = trained("--total_steps=40", "--eval_every_steps=20", "--batch_size=6")
    found = losses(job_dir)
    assert np.mean(found[-5:]) < 0.5 * np.mean(found[:5])
    scores = [row["val_loss"] for row in rows(job_dir, "eval")]
    assert np.isfinite(scores).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--train_encoder"],
        ["--train_encoder", "--train_encoder_batch_norm"],
        ["--precision=mixed_bfloat16"],
        ["--precision=mixed_float16"],
        ["--jit_compile"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_each_way_to_train_runs_and_is_saved(trained, flags):
    job_dir = trained("--total_steps=2", "--encoder_weights=none", *flags)
    assert np.isfinite(losses(job_dir)).all() and len(losses(job_dir)) == 2
    saved = checkpoint_folder.load_latest(str(job_dir / "checkpoints"))
    assert saved.state["step"] == 2
    assert {a.dtype for a in saved.arrays.values() if a.dtype.kind == "f"} == {
        np.dtype("float32")
    }
    tf.keras.backend.clear_session()


@pytest.mark.parametrize(("scale", "rate"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_the_learning_rate_of_a_new_run_is_scaled_by_its_replicas(scale, rate):
    settings = config.Config(learning_rate=0.01, scale_learning_rate=scale)
    strategy = types.SimpleNamespace(num_replicas_in_sync=4)
    assert job._learning_rate(settings, strategy) == pytest.approx(0.01 * rate)


def test_a_run_says_where_its_time_went(trained, tiny_unet):
    job_dir = trained("--epochs=2")
    result = read(job_dir)
    assert result["seconds"] == pytest.approx(result["total_seconds"], rel=0.2)
    assert result["seconds_of"]["compiling"] > 0
    assert result["seconds_of"]["lost_to_restarts"] == 0
    assert 0 < result["goodput"] < 1
    tags = {tag for tag, _ in runs.events(job_dir / "logs")}
    assert {"goodput", "seconds/stepping", "seconds/lost_to_restarts"} <= tags
