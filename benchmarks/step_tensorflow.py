"""The half of `benchmarks.step` that runs in TensorFlow: our step, and the tutorial's.

Letters: N examples, S side in pixels.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks import turns, tutorial
from trainer import model, step

NUM_CLASSES = len(tutorial.CLASS_NAMES)
MATRIX_SIDE = 4096
PRODUCTS = 2  # Of a turn.
Turn = Callable[[int], tuple[float, float | None]]  # Steps -> seconds, last loss.


def batch(batch_size: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns image (N, S, S, 3) uint8 and mask (N, S, S) uint8, of noise."""
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    return image, rng.integers(0, NUM_CLASSES, shape).astype(np.uint8)


def train_steps(unet: keras.Model, image: np.ndarray, mask: np.ndarray) -> Callable:
    """Returns what takes n steps with the same batch: see `step.make_train_steps`.

    Args:
        unet: The model, which is trained.
        image: (N, S, S, 3) uint8.
        mask: (N, S, S) uint8.
    """
    recipe: dict[str, Any] = dict(name="adam", learning_rate=1e-3, schedule="constant")
    recipe |= dict(warmup_steps=0, total_steps=1, weight_decay=0.0)
    optimizer = step.make_optimizer(unet, **recipe)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    take = step.make_train_steps(strategy, unet, optimizer)
    dataset = tf.data.Dataset.from_tensors((image, mask)).repeat()
    batches = iter(strategy.experimental_distribute_dataset(dataset))
    return functools.partial(take, batches)


def ours(train_encoder: bool, policy: str, image: np.ndarray, mask: np.ndarray) -> Turn:
    """Returns a turn of our step."""
    unet = _unet(image.shape[1], train_encoder, policy)
    take = train_steps(unet, image, mask)

    def turn(steps: int) -> tuple[float, float]:
        began = time.perf_counter()
        _, loss, taken, _ = take(steps)
        seconds = time.perf_counter() - began
        if taken < steps or not math.isfinite(loss):
            raise ValueError(f"the loss must be finite, got {loss}")
        return seconds, loss

    return turn


def fit(train_encoder: bool, policy: str, image: np.ndarray, mask: np.ndarray) -> Turn:
    """Returns a turn of the tutorial's `Model.fit`, which gets its float32 input."""
    keras.config.set_dtype_policy(policy)
    weights = str(tutorial.ENCODER_WEIGHTS)
    unet = tutorial.unet_model(NUM_CLASSES, image.shape[1], weights)
    if train_encoder:
        [encoder] = [
            x for x in unet.layers if isinstance(x, keras.src.models.Functional)
        ]
        encoder.trainable = True
        for layer in encoder.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    unet.compile(**tutorial.COMPILED)
    examples = image / np.float32(128) - 1, mask[..., None].astype(np.float32)
    dataset = tf.data.Dataset.from_tensors(examples).repeat()
    clock = tutorial.Clock()

    def turn(steps: int) -> tuple[float, None]:
        unet.fit(
            dataset,
            steps_per_epoch=steps,
            verbose=0,
            shuffle=False,
            callbacks=[clock],
        )
        return clock.epochs[-1][1], None  # Its decoder starts with other weights.

    return turn


def product(dtype: str) -> Callable[[], float]:
    """Returns what tells the FLOP/s of a product of two large matrices."""
    rng = np.random.default_rng(0)
    shape = (2, MATRIX_SIDE, MATRIX_SIDE)
    a, b = tf.cast(rng.standard_normal(shape, np.float32), dtype)

    def rate() -> float:
        began = time.perf_counter()
        for _ in range(PRODUCTS):
            tf.linalg.matmul(a, b)
        return 2 * MATRIX_SIDE**3 * PRODUCTS / (time.perf_counter() - began)

    return rate


def write(path: str, batch_size: int, image_size: int) -> int:
    """Writes batch, weights and logits for PyTorch; returns the number of parameters.

    Args:
        path: The .npz file.
        batch_size: N.
        image_size: S.
    """
    image, mask = batch(batch_size, image_size)
    unet = _unet(image_size, train_encoder=False, policy="float32")
    encoder = unet.get_layer("encoder").weights
    seen = {id(v) for v in encoder}
    weights = [*encoder, *(v for v in unet.weights if id(v) not in seen)]
    logits = unet(image.astype(np.float32), training=False).numpy()
    arrays = {f"weight_{i:03}": v.numpy() for i, v in enumerate(weights)}
    np.savez(path, image=image, mask=mask, logits=logits, **arrays)
    return unet.count_params()


def _unet(image_size: int, train_encoder: bool, policy: str) -> keras.Model:
    return model.build_unet(
        image_size=image_size,
        num_classes=NUM_CLASSES,
        train_encoder=train_encoder,
        precision=policy,
    )


def main() -> None:
    """Serves the turns of `benchmarks.step`."""
    sides = {"ours": ours, "fit": fit}

    @functools.cache
    def made(side: str, train_encoder: bool, precision: str, n: int, s: int) -> Turn:
        policy = "float32" if precision == "float32" else f"mixed_{precision}"
        return sides[side](train_encoder, policy, *batch(n, s))

    rates = functools.cache(product)
    turns.serve(
        {
            "write": write,
            "turn": lambda *case: made(*case[:-1])(case[-1]),
            "product": lambda dtype: rates(dtype)(),
        }
    )


if __name__ == "__main__":
    main()
