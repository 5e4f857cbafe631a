"""A model as a LiteRT file, for phones and small machines: one image at its size.

Letters: S side of the model's square input in pixels, C classes.
"""

from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer import inference, terminal


def float32(model: keras.Model) -> bytes:
    """Returns the file of a model that computes in float32.

    Args:
        model: Image (N, S, S, 3) float32 -> logits (N, S, S, C), in float32.

    Returns:
        Of (1, S, S, 3) uint8 -> probabilities (1, S, S, C) float32.
    """
    return _converter(model, tf.uint8).convert()


def int8(model: keras.Model, images: Iterable[np.ndarray]) -> bytes:
    """Returns the file of a model that computes in integers of 8 bits.

    Args:
        model: As for `float32`.
        images: (S, S, 3) uint8 each; the range of every tensor is taken from them.

    Returns:
        Of (1, S, S, 3) uint8 -> (1, S, S, C) uint8, probabilities times 256.

    Source: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization,
    full integer quantization.
    """
    converter = _converter(model, tf.float32)

    def representative() -> Iterator[list[np.ndarray]]:
        for index, image in enumerate(images):
            seen = image[np.newaxis].astype(np.float32)
            if index == 0:  # So that a step of the input is a step of a pixel: 0..255.
                seen[0, 0, 0, 0], seen[0, 0, 1, 0] = 0, 255
            yield [seen]

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    with terminal.silent():  # It tells what it quantizes, in numbers.
        return converter.convert()


def _converter(model: keras.Model, dtype: tf.DType) -> tf.lite.TFLiteConverter:
    """Returns the converter of a model to probabilities, for one image of a type."""
    probabilities = inference.make_probabilities(model)
    holder = tf.Module()  # Whose variables become constants.
    holder.weights = [variable.value for variable in model.variables]
    shape = (1, *model.input_shape[1:])
    image = tf.TensorSpec(shape, dtype, name="images")
    traced = tf.function(
        lambda images: {"probabilities": probabilities(images)}, autograph=False
    ).get_concrete_function(image)
    return tf.lite.TFLiteConverter.from_concrete_functions([traced], holder)
