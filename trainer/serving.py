"""A model as a SavedModel that serves masks: no code of ours is needed to run it.

Letters: N images in a batch, S side of the model's square input, H and W a picture's own
height and width in pixels, C classes.
"""

import keras
import tensorflow as tf

from trainer import decoding, inference, resizing

ENCODED = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY  # "serving_default"
PIXELS = "pixels"
# TensorFlow Serving and Vertex AI take names that end so for base64 in JSON.
IMAGE, MASK = "image_bytes", "mask_bytes"


class Served(tf.Module):
    """What is served: masks of image files, class ids and probabilities of pixels.

    It computes what `trainer.predict` does, on the same devices: all but the model itself
    on the CPU, whose resizing another device's would not equal to the last bit.

    Args:
        model: Image (N, S, S, 3) float32 -> logits (N, S, S, C), made outside of any
            strategy's scope.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        # Not the model: Keras' layers would be saved with code to trace.
        self.weights = [variable.value for variable in model.variables]
        self._size = model.input_shape[1]  # S
        # Traced once for both signatures.
        probabilities = inference.make_probabilities(model)
        self._probabilities = probabilities.get_concrete_function(
            tf.TensorSpec((None, self._size, self._size, 3), tf.uint8)
        )

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string, name=IMAGE)], autograph=False
    )
    def masks(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns a PNG of class ids for each image file, at that image's own size.

        Args:
            image_bytes: (N,) string, JPEG or PNG; N may be 0.

        Returns:
            `MASK`: (N,) string, grey PNGs of 8 bits.
        """
        square = tf.TensorSpec((self._size, self._size, 3), tf.uint8)
        with tf.device("CPU"):
            small, sizes = tf.map_fn(
                self._read,
                image_bytes,
                fn_output_signature=(square, tf.TensorSpec((2,), tf.int32)),
            )
        found = self._seen(small)
        with tf.device("CPU"):
            masks = tf.map_fn(_mask, (found, sizes), fn_output_signature=tf.string)
        return {MASK: masks}

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")],
        autograph=False,
    )
    def pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what is seen in images of one size, at the model's size.

        Args:
            images: (N, H, W, 3) uint8.

        Returns:
            `class_ids`: (N, S, S) uint8; `probabilities`: (N, S, S, C) float32.
        """
        with tf.device("CPU"):
            small = resizing.image(images, self._size)
        found = self._seen(small)
        return {"class_ids": _ids(found), "probabilities": found}

    def _seen(self, small: tf.Tensor) -> tf.Tensor:
        """Returns the probabilities of N images at the model's size; N may be 0."""
        # Convolutions take no empty batch: it gets an image, which is cut off again.
        count = tf.shape(small)[0]
        none = tf.zeros((tf.cast(count == 0, tf.int32), *small.shape[1:]), small.dtype)
        return self._probabilities(tf.concat([small, none], 0))[:count]

    def _read(self, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns an image at the model's size, and its own size (2,) int32."""
        image = decoding.pixels(data)
        return resizing.image(image, self._size), tf.shape(image)[:2]


def save(model: keras.Model, folder: str) -> None:
    """Writes a model as a SavedModel.

    Args:
        model: As `Served` takes it.
        folder: A local directory.
    """
    served = Served(model)
    signatures = {ENCODED: served.masks, PIXELS: served.pixels}
    tf.saved_model.save(served, folder, signatures=signatures)


def _mask(seen: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Returns the PNG () string of an image's probabilities and its size."""
    found, size = seen
    ids = resizing.ids(found, size[0], size[1])
    return tf.io.encode_png(ids[..., tf.newaxis])


def _ids(probabilities: tf.Tensor) -> tf.Tensor:
    """Returns the class ids (...) uint8 of probabilities (..., C)."""
    return tf.cast(tf.argmax(probabilities, -1, tf.int32), tf.uint8)
