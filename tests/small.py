"""The training command with a small network, where a test is not about the network.

    python -m tests.small --job_dir=...

To trace the U-Net takes much of a short run. This one has few layers, and weights of some
megabytes all the same, so that a save takes its time.
"""

import signal

# As the command does before TensorFlow starts threads, which would get the signals.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])

import keras

from trainer import model, task
from trainer.batch_norm import SyncBatchNorm
from trainer.up_conv import UpConv


def unet(*, image_size: int, num_classes: int, seed: int, **_) -> keras.Model:
    """Returns a model of a frozen encoder and a decoder, as few layers as that takes."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((image_size, image_size, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(image)
    features = keras.layers.AveragePooling2D(16)(x)
    for width, kernel in ((256, 1), (512, 3)):
        frozen = keras.layers.Conv2D(width, kernel, padding="same", trainable=False)
        features = frozen(features)
    features = keras.layers.ReLU()(SyncBatchNorm(name="norm")(features))
    features = keras.layers.UpSampling2D(8)(features)
    logits = UpConv(num_classes, use_bias=True, name="logits")
    return keras.Model(image, logits([features, keras.layers.AveragePooling2D(2)(x)]))


model.build_unet = unet  # type: ignore[assignment]

if __name__ == "__main__":
    task.command()
