"""The mean of the weights: what it is, that it is judged, kept, exported and resumed."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import runs
from trainer import (
    averaging,
    batch_norm,
    checkpoint,
    checkpoint_folder,
    job,
    task,
    trained,
)

SMALL = ["--image_size=32", "--num_pictures=1", "--log_every_steps=1", "--noexport"]


def value(variable):
    return keras.ops.convert_to_numpy(variable)


def weights_and_average(strategy, decay):
    with strategy.scope():
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        image = keras.Input((1,))
        model = keras.Model(image, layer(image))
        return model, averaging.Average(model, decay)


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_mean_is_pulled_by_each_step_and_soon_forgets_the_start(replicas):
    strategy = runs.mirrored(replicas)
    model, average = weights_and_average(strategy, decay=0.5)
    [weight], [mean] = model.trainable_variables, average.by_path.values()
    expected = 0.0
    for made in range(1, 12):
        weight.assign([[float(made)]])
        tf.function(average.update)(strategy, tf.constant(made))
        decay = min(0.5, (1 + made) / (10 + made))
        expected = decay * expected + (1 - decay) * made
        assert value(mean)[0, 0] == pytest.approx(expected, rel=1e-6)
    for component in strategy.experimental_local_results(mean.value):
        np.testing.assert_array_equal(component.numpy(), value(mean))


def test_the_means_stand_in_for_the_weights_and_give_them_back():
    strategy = tf.distribute.get_strategy()
    model, average = weights_and_average(strategy, decay=0.9)
    [weight], [mean] = model.trainable_variables, average.by_path.values()
    weight.assign([[3.0]])
    with pytest.raises(RuntimeError), average.in_place():
        assert value(weight) == value(mean) == 0
        raise RuntimeError
    assert value(weight) == 3 and value(mean) == 0


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_statistics_of_batch_norm_have_means_too(replicas):
    strategy = runs.mirrored(replicas)
    with strategy.scope():
        image, norm = keras.Input((2, 2, 1)), batch_norm.SyncBatchNorm()
        frozen = keras.layers.BatchNormalization(trainable=False)
        encoder = keras.Model(image, frozen(norm(image)))
        model = keras.Model(image, encoder(image))
        average = averaging.Average(model, decay=0.5)
    of_norm = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    assert average.by_path.keys() == {variable.path for variable in of_norm}

    @tf.function
    def step(made):
        strategy.run(lambda: model(4 * tf.ones((1, 2, 2, 1)), training=True))
        average.update(strategy, made)

    step(tf.constant(100))
    # What is constant has a mean of 4 and no variance, of which Keras takes a hundredth.
    assert value(norm.moving_mean) == pytest.approx(0.04)
    with average.in_place():
        assert value(norm.moving_mean) == pytest.approx(0.02)
        assert value(norm.moving_variance) == pytest.approx(0.995)
    assert value(norm.moving_mean) == pytest.approx(0.04)


@pytest.fixture
def ran(pets, tmp_path, tiny_unet):
    """Runs six steps with means; returns the flags, after `more`, and the job_dir."""
    data_dir = pets(12)

    def run(name="run", *more):
        job_dir = tmp_path / name
        flags = [f"--data_dir={data_dir}", f"--job_dir={job_dir}", *SMALL]
        flags += ["--batch_size=4", "--total_steps=6", "--eval_every_steps=3", *more]
        assert task.main(flags) == 0
        return flags, job_dir

    return run


def val_loss(job_dir):
    lines = map(json.loads, (job_dir / "metrics.jsonl").read_text().splitlines())
    return [row["val_loss"] for row in lines if row["kind"] == "eval"]


def test_means_are_judged_while_the_weights_go_on_as_without_them(ran):
    _, with_means = ran("with", "--ema_decay=0.9")
    _, without = ran("without")
    ours = checkpoint_folder.load_latest(str(with_means / "checkpoints")).arrays
    theirs = checkpoint_folder.load_latest(str(without / "checkpoints")).arrays
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    means = [name for name in ours if name.startswith("average/")]
    assert [name.removeprefix("average/") for name in means] == [
        name.removeprefix("model/") for name in theirs if name.startswith("model/")
    ]
    assert all(
        (ours[n] != ours["model/" + n.removeprefix("average/")]).any() for n in means
    )
    assert val_loss(with_means) != val_loss(without)


def test_a_run_that_goes_on_has_the_means_of_one_that_was_never_stopped(
    ran, monkeypatch
):
    # Which nothing takes back in this process, and no CPU needs.
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    _, straight = ran("straight", "--ema_decay=0.9", "--deterministic")
    stopped_flags, stopped = ran(
        "stopped", "--ema_decay=0.9", "--deterministic", "--total_steps=3"
    )
    (stopped / "result.json").unlink()
    assert task.main([*stopped_flags, "--total_steps=6"]) == 0
    one = checkpoint_folder.load_latest(str(straight / "checkpoints")).arrays
    other = checkpoint_folder.load_latest(str(stopped / "checkpoints")).arrays
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_the_model_of_a_run_is_the_one_that_was_judged(ran):
    _, job_dir = ran("run", "--ema_decay=0.9")
    loaded = trained.load(str(job_dir), "latest")
    saved = checkpoint_folder.load_latest(str(job_dir / "checkpoints")).arrays
    for weight in loaded.model.trainable_variables:
        np.testing.assert_array_equal(value(weight), saved[f"average/{weight.path}"])


def test_the_model_that_is_exported_is_the_one_that_was_judged(ran):
    _, job_dir = ran("run", "--ema_decay=0.9", "--export")
    served = tf.saved_model.load(str(job_dir / "export" / "1"))
    judged = trained.load(str(job_dir)).model
    assert len(served.weights) == len(judged.weights)
    for ours, theirs in zip(served.weights, judged.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), value(theirs))


def test_a_new_run_starts_from_the_means_of_another(ran, monkeypatch, tmp_path):
    kept = str(tmp_path / "elsewhere")
    _, first = ran("first", "--ema_decay=0.9", f"--checkpoint_dir={kept}")
    seen = []
    prepare = job.prepare

    def prepared(*args, **kwargs):
        made = prepare(*args, **kwargs)
        seen.append(checkpoint.values(made.variables))
        return made

    monkeypatch.setattr(job, "prepare", prepared)
    ran("second", "--ema_decay=0.5", f"--init_from={first}")
    arrays = checkpoint.load_judged(
        kept, checkpoint_folder.pointer(kept)["best"]
    ).arrays
    [start] = seen
    for name, array in start.items():
        kind, _, path = name.partition("/")
        if kind in ("model", "average"):
            np.testing.assert_array_equal(array, arrays[f"model/{path}"], err_msg=name)
