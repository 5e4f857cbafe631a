"""Evaluation: the same figures for any batch size and replicas, and by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import runs
from trainer import (
    data,
    dataset,
    distribution,
    evaluation_step,
    metrics,
    model,
    records,
    streams,
)

SIZE = 32
NAMES = ["ground", "disc"]
TEST_EXAMPLES = 11


@pytest.fixture
def opened(shapes):
    """Returns a data set with ignored pixels."""
    return dataset.open_dataset(
        "shapes",
        data_dir=shapes(train=4, test=TEST_EXAMPLES),
        mask_feature="labels",
        image_feature="photo",
        class_names=NAMES,
        ignore_id=255,
        val_fraction=0.5,
    )


def unet(strategy):
    """Returns the model of a run."""
    with strategy.scope():
        return model.build_unet(image_size=SIZE, num_classes=2, seed=1)


def one_layer(strategy):
    """Returns a model that is soon compiled."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        image = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.Rescaling(1 / 127.5, -1)(image)
        x = keras.layers.Conv2D(2, 3, padding="same")(x)
        return keras.Model(image, x)


def evaluated(opened, strategy, network, batch_size):
    replicas = strategy.num_replicas_in_sync
    examples = data.examples_of(opened, SIZE, "none")["test"]
    turns = -(-TEST_EXAMPLES // (batch_size * replicas))

    def stream(stop):
        return streams.eval_batches(
            opened,
            opened.test,
            examples,
            image_size=SIZE,
            batch_size=batch_size,
            batches=turns * replicas,
            stop=stop,
        )

    run = evaluation_step.make_evaluate(strategy, network, NAMES)
    with streams.iterator(stream, strategy) as batches:
        found, confusion = run(batches, turns)
    assert confusion.dtype == np.int64
    assert metrics.summary(confusion, NAMES).items() <= found.items()
    return found


def by_hand(opened, network):
    """Returns the metrics of the test split, pixel by pixel, one example at a time."""
    examples = data.examples_of(opened, SIZE, "none")["test"]
    confusion, loss = np.zeros((2, 2), np.int64), 0.0
    for id in range(TEST_EXAMPLES):
        image, mask = records.decode(opened, examples.serialized(id), SIZE)
        logits = network(tf.cast(image, tf.float32)[None], training=False)[0].numpy()
        mask, prediction = mask.numpy(), logits.argmax(axis=-1)
        logits = logits.astype(np.float64)
        nats = np.log(np.exp(logits).sum(axis=-1))
        for true in (0, 1):
            loss += (nats - logits[..., true])[mask == true].sum()
            for given in (0, 1):
                confusion[true, given] += ((mask == true) & (prediction == given)).sum()
    assert 0 < confusion.sum() < TEST_EXAMPLES * SIZE**2  # some pixels are ignored
    assert (confusion > 0).all()
    both, true, given = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    iou, dice = both / (true + given - both), 2 * both / (true + given)
    return {
        "loss": loss / confusion.sum(),
        "mean_iou": iou.mean(),
        "pixel_accuracy": both.sum() / confusion.sum(),
        "iou/ground": iou[0],
        "iou/disc": iou[1],
        "dice/ground": dice[0],
        "dice/disc": dice[1],
    }


@pytest.mark.parametrize(
    ("build", "batch_sizes", "replica_counts"),
    [
        (one_layer, [1, 3, 8], [2, 4]),
        pytest.param(unet, [1, 3, 8], [2], marks=pytest.mark.slow),
    ],
)
def test_figures_are_those_counted_by_hand_for_any_batch_size_and_replicas(
    opened, build, batch_sizes, replica_counts
):
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    network = build(one)
    expected = by_hand(opened, network)
    cases = {f"batch {n}": (one, n) for n in batch_sizes}
    for replicas in replica_counts:
        cases[f"{replicas} replicas"] = (runs.mirrored(replicas), 2)
    for case, (strategy, batch_size) in cases.items():
        same = network if strategy is one else build(strategy)
        found = evaluated(opened, strategy, same, batch_size)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name == "loss":
                assert found[name] == pytest.approx(value, rel=1e-6), case
            else:
                assert found[name] == value, (case, name)


def answer(image, training):
    """Stands in for a model: gives each pixel the class that its red channel says."""
    assert training is False
    return tf.one_hot(tf.cast(image[..., 0], tf.int32), 3, on_value=2.0)


def figures(image, mask, batch_size):
    """Returns the figures of images whose red channel is the prediction."""
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    run = evaluation_step.make_evaluate(one, answer, ["a", "b", "c"])
    batches = tf.data.Dataset.from_tensor_slices((image, mask)).batch(batch_size)
    return run(iter(batches), len(image) // batch_size)[0]


def answers(predicted):
    """Returns images, (N, S, S, 3) uint8, that `answer` predicts so."""
    return np.repeat(np.array(predicted, np.uint8)[..., None], 3, axis=-1)


def test_loss_is_the_plain_cross_entropy_over_counted_pixels():
    mask = np.array([[[0, 255], [255, 255]], [[1, 1], [0, 0]]], np.uint8)
    predicted = [[[0, 1], [1, 1]], [[1, 1], [0, 1]]]
    right = np.log(np.exp(2) + 2) - 2
    wrong = np.log(np.exp(2) + 2)
    for batch_size in (1, 2):
        found = figures(answers(predicted), mask, batch_size)
        assert found["loss"] == pytest.approx((4 * right + wrong) / 5, rel=1e-6)
        assert found["pixel_accuracy"] == 4 / 5


def test_a_class_that_does_not_occur_is_none_and_left_out_of_the_mean():
    mask = np.array([[[0, 0], [1, 1]]], np.uint8)
    found = figures(answers([[[0, 0], [1, 0]]]), mask, 1)
    assert found["iou/c"] is None and found["dice/c"] is None
    assert found["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_split_of_ignored_pixels_only_has_no_figures():
    mask = np.full((2, 2, 2), 255, np.uint8)
    found = figures(answers(np.zeros((2, 2, 2))), mask, 1)
    assert set(found.values()) == {None}
    assert found.keys() == {"loss", *metrics.summary(np.zeros((3, 3)), ["a", "b", "c"])}


def test_more_batches_than_fit_in_one_call_all_count():
    count = 2 * evaluation_step.STEPS_PER_CALL + 1
    predicted = np.zeros((count, 2, 2))
    predicted[-1] = 1
    found = figures(answers(predicted), np.zeros((count, 2, 2), np.uint8), 1)
    assert found["pixel_accuracy"] == (count - 1) / count


def test_prediction_is_the_most_likely_class_of_each_pixel():
    for strategy in (
        distribution.make_strategy("one_device"),
        runs.mirrored(2),
    ):
        image = np.random.default_rng(0).integers(0, 3, (3, 4, 4, 3)).astype(np.uint8)
        found = evaluation_step.make_predict(strategy, answer)(image)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, image[..., 0])
