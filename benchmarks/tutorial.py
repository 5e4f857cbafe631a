"""TensorFlow's image segmentation tutorial as it was first written, to measure against.

    python -m benchmarks.tutorial --data_dir=DIR --epochs=20

The recipe of tensorflow.org/tutorials/images/segmentation of 2019, which most copies of
it still follow, written anew for Keras 3: [-1, 1] input, bilinear masks (so labels
between the classes, which the loss truncates), flips drawn once and then frozen by the
cache, frozen MobileNetV2, softmax, `Model.fit`, validation on a fifth of test. Added to
it are a clock and, after training, exact figures of the whole test split against masks
resized by nearest neighbour, counted by our own `trainer.metrics`.

Letters: N examples, S side in pixels, C classes.
"""

import time

STARTED = time.monotonic()  # before the slow imports, which are part of the wait

import argparse
import json
import pathlib
import resource
import statistics

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import trainer
from trainer import metrics

CLASS_NAMES = ["pet", "background", "border"]
ENCODER_WEIGHTS = (
    pathlib.Path(trainer.__file__).parent
    / "assets/weights/mobilenet_v2_1.0_224_no_top.weights.h5"
)
LAYER_NAMES = [
    "block_1_expand_relu",  # S/2
    "block_3_expand_relu",  # S/4
    "block_6_expand_relu",  # S/8
    "block_13_expand_relu",  # S/16
    "block_16_project",  # S/32
]
COMPILED = {
    "optimizer": "adam",
    "loss": "sparse_categorical_crossentropy",
    "metrics": ["accuracy"],
}
BUFFER_SIZE = 1000
VAL_SUBSPLITS = 5


def upsample(filters: int, size: int) -> tf.keras.Sequential:
    """Returns the upsampling block of TensorFlow's pix2pix example: twice the side."""
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2DTranspose(
                filters,
                size,
                strides=2,
                padding="same",
                kernel_initializer=tf.random_normal_initializer(0.0, 0.02),
                use_bias=False,
            ),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.ReLU(),
        ]
    )


def unet_model(
    output_channels: int, image_size: int, encoder_weights: str | None
) -> tf.keras.Model:
    """Returns the tutorial's U-Net: (N, S, S, 3) in [-1, 1] to (N, S, S, C) softmax."""
    base_model = tf.keras.applications.MobileNetV2(
        input_shape=[image_size, image_size, 3],
        include_top=False,
        weights=encoder_weights,
    )
    layers = [base_model.get_layer(name).output for name in LAYER_NAMES]
    down_stack = tf.keras.Model(inputs=base_model.input, outputs=layers)
    down_stack.trainable = False

    inputs = tf.keras.layers.Input(shape=[image_size, image_size, 3])
    *skips, x = down_stack(inputs)
    for filters, skip in zip([512, 256, 128, 64], reversed(skips), strict=True):
        x = upsample(filters, 3)(x)
        x = tf.keras.layers.Concatenate()([x, skip])
    x = tf.keras.layers.Conv2DTranspose(
        output_channels, 3, strides=2, padding="same", activation="softmax"
    )(x)
    return tf.keras.Model(inputs=inputs, outputs=x)


def load_image(
    datapoint: dict[str, tf.Tensor], image_size: int, masks: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns image (S, S, 3) float32 in [-1, 1], mask (S, S, 1) float32 from 0."""
    size = (image_size, image_size)
    image = tf.image.resize(datapoint["image"], size)
    mask = tf.image.resize(datapoint["segmentation_mask"], size, method=masks)
    return image / 128.0 - 1, tf.cast(mask, tf.float32) - 1


def flip(image: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both mirrored, or both as they are: half of the time each."""
    if tf.random.uniform(()) > 0.5:
        image = tf.image.flip_left_right(image)
        mask = tf.image.flip_left_right(mask)
    return image, mask


class Clock(tf.keras.callbacks.Callback):
    """Notes how long training steps take, without validation.

    The first step, in which the program is traced, is timed on its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first_step_seconds: float | None = None
        self.epochs: list[tuple[int, float]] = []  # steps and seconds of each
        self._steps = 0
        self._began = self._ended = 0.0

    def on_epoch_begin(self, epoch, logs=None) -> None:
        """Starts the watch."""
        self._steps, self._began = 0, time.monotonic()

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Notes a finished step."""
        self._ended = time.monotonic()
        if self.first_step_seconds is None:
            self.first_step_seconds = self._ended - STARTED
            self._began = self._ended
        else:
            self._steps += 1

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Stops the watch at the end of the last step."""
        self.epochs.append((self._steps, self._ended - self._began))


def evaluate(model: tf.keras.Model, test: tf.data.Dataset) -> dict[str, float | None]:
    """Returns mean IoU, pixel accuracy, and IoU and Dice of each class, of all of test.

    Args:
        model: Takes images in [-1, 1].
        test: Batches of images and nearest-neighbour masks, (N, S, S, 1) float32.
    """

    @tf.function(reduce_retracing=True)
    def count(image: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        prediction = tf.argmax(model(image, training=False), axis=-1)
        return metrics.confusion_matrix(mask[..., 0], prediction, len(CLASS_NAMES))

    total = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), np.int64)
    for image, mask in test:
        total += count(image, mask).numpy()
    return metrics.summary(total, CLASS_NAMES)


def train_and_evaluate(args: argparse.Namespace) -> dict:
    """Returns what the tutorial reached, how fast, and with how much memory."""
    dataset, info = tfds.load(
        "oxford_iiit_pet", data_dir=args.data_dir, download=False, with_info=True
    )
    num_train = info.splits["train"].num_examples
    num_test = info.splits["test"].num_examples
    if args.limit_train_examples:
        num_train = min(num_train, args.limit_train_examples)
    if args.limit_eval_examples:
        num_test = min(num_test, args.limit_eval_examples)
    steps_per_epoch = max(2, num_train // args.batch_size)
    validation_steps = max(1, num_test // args.batch_size // VAL_SUBSPLITS)

    def load(masks: str):
        return lambda datapoint: load_image(datapoint, args.image_size, masks)

    train = dataset["train"].take(num_train).map(load(args.masks), tf.data.AUTOTUNE)
    train = train.map(flip).cache().shuffle(BUFFER_SIZE).batch(args.batch_size).repeat()
    train = train.prefetch(tf.data.AUTOTUNE)
    test = dataset["test"].take(num_test)

    model = unet_model(len(CLASS_NAMES), args.image_size, args.encoder_weights)
    model.compile(**COMPILED)
    clock = Clock()
    history = model.fit(
        train,
        epochs=args.epochs,
        steps_per_epoch=steps_per_epoch,
        validation_steps=validation_steps,
        validation_data=test.map(load(args.masks)).batch(args.batch_size),
        callbacks=[clock],
        verbose=2,
    )
    peak_kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    steady = clock.epochs[1:] or clock.epochs
    steps_per_second = statistics.median(steps / seconds for steps, seconds in steady)
    steps, seconds = map(sum, zip(*clock.epochs, strict=True))
    return {
        "test": evaluate(
            model, test.map(load("nearest"), tf.data.AUTOTUNE).batch(args.batch_size)
        ),
        "test_examples": num_test,
        "epochs": args.epochs,
        "steps": args.epochs * steps_per_epoch,
        "images_per_second": args.batch_size * steps_per_second,
        "train_images_per_second": args.batch_size * steps / seconds,
        "seconds_to_first_step": clock.first_step_seconds,
        "train_seconds": seconds,
        "total_seconds": time.monotonic() - STARTED,
        "peak_memory_bytes": peak_kibibytes * 1024,
        "history": history.history,
    }


def main() -> None:
    """Trains, evaluates, prints the result as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", required=True, help="TFDS folder with oxford_iiit_pet")
    add("--encoder_weights", default=str(ENCODER_WEIGHTS), help=".weights.h5 file")
    add("--epochs", type=int, default=20)
    add("--batch_size", type=int, default=64)
    add("--image_size", type=int, default=128, help="side, pixels")
    add(
        "--masks",
        choices=["bilinear", "nearest"],
        default="bilinear",
        help="how masks are resized to train on; the tutorial's of today is nearest",
    )
    add("--limit_train_examples", type=int)
    add("--limit_eval_examples", type=int)
    add("--output", help="file for the result")
    args = parser.parse_args()
    result = json.dumps(train_and_evaluate(args))
    if args.output:
        pathlib.Path(args.output).write_text(result + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    main()
