"""A network of keras.applications as an encoder: normalisation, taps, weights.

Letters: N images in a batch, S side of an image.
"""

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state

from trainer import encoders, files

BUNDLED_WEIGHTS = os.path.join(
    os.path.dirname(__file__),
    "assets",
    "weights",
    "mobilenet_v2_1.0_224_no_top.weights.h5",
)
# What ends the names of the layers that are worth a skip.
ENDS = ("add", "relu", "re_lu", "activation", "out", "gelu", "project_bn")


def normalise(name: str, image: keras.KerasTensor) -> keras.KerasTensor:
    """Returns an RGB image (N, S, S, 3) 0..255 as the encoder was trained on it."""
    normalisation = encoders.TABLE[name].normalisation
    if normalisation is encoders.BLUE_FIRST:
        image = keras.ops.flip(image, axis=-1)
    return keras.layers.Rescaling(**normalisation, name="normalise")(image)


def build(
    name: str,
    *,
    image_size: int,
    alpha: float = 1.0,
    weights: str = "imagenet",
    download: bool = False,
    skip_layers: Sequence[str] | None = None,
) -> keras.Model:
    """Returns an encoder: normalised image (N, S, S, 3) -> its skips, its bottleneck.

    Nothing in it is drawn at random in training, neither dropout nor stochastic depth:
    that would differ between replicas, and after a restart.

    Args:
        name: In `encoders.TABLE`.
        image_size: S, pixels, a multiple of 32.
        alpha: Width of mobilenet_v2, over that of the paper.
        weights: "imagenet", "none", or the path of a .weights.h5 or .h5 file of the
            network without its top, local or gs://.
        download: Whether Keras may fetch weights that are not bundled.
        skip_layers: Others than the table's, at strides 2, 4, 8 and 16.

    Raises:
        ValueError: If there are no such layers, or the weights are not there or do not
            fit.
    """
    encoders.check(
        name, alpha=alpha, weights=weights, download=download, skip_layers=skip_layers
    )
    encoder = encoders.TABLE[name]
    fetch = encoders.is_to_fetch(name, alpha, weights)
    with _counted_anew():
        network = _network(name, image_size, alpha, fetch)
    skips = zip(encoders.STRIDES, skip_layers or encoder.skips, strict=True)
    taps = [_tap(network, s, layer) for s, layer in skips if layer != encoders.NONE]
    taps.append(network.get_layer(encoder.bottleneck).output)
    if weights != "none" and not fetch:
        shown = f"keras.applications.{encoder.application}"
        wide = f"alpha {alpha}, " if name == encoders.DEFAULT else ""
        path = BUNDLED_WEIGHTS if weights == "imagenet" else weights
        _load(network, f"{shown} ({wide}no top)", path)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return keras.Model(network.input, taps, name="encoder")


def first_at(network: keras.Model, stride: int) -> int:
    """Returns the place among a network's layers of the first whose maps are as coarse.

    What is narrowed to a single pixel, to weigh channels by, is no map; where the maps of
    the stride are no larger, all before the last layer counts as finer.
    """
    side = network.input.shape[1] // stride
    for place, layer in enumerate(network.layers):
        shape = layer.output.shape
        if len(shape) == 4 and 1 < shape[1] <= side:
            return place
    return len(network.layers) - 1


@contextlib.contextmanager
def _counted_anew() -> Iterator[None]:
    """Has Keras number what has no name of its own as it does in a new process.

    Checkpoints know variables by these names, and the table layers.
    """
    counts = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", None)
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", counts)


def _network(name: str, image_size: int, alpha: float, fetch: bool) -> keras.Model:
    """Returns the whole network without its top, random unless its weights are fetched."""
    encoder = encoders.TABLE[name]
    make = getattr(keras.applications, encoder.application)
    shape = (image_size, image_size, 3)
    options: dict[str, Any] = {"input_shape": shape, "include_top": False}
    if encoder.normalises:
        options["include_preprocessing"] = False
    if name == encoders.DEFAULT:
        options["alpha"] = alpha
    if not fetch:
        return make(weights=None, **options)
    try:
        # Keras shows its progress, and warns where S is not that of the weights.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return make(weights="imagenet", **options)
    except Exception as error:  # What Keras raises where the network fails.
        raise ValueError(
            f"encoder_weights imagenet of {name} could not be fetched: "
            f"{str(error).splitlines()[0]}; try again, or give --encoder_weights=PATH"
        ) from error


def _tap(network: keras.Model, stride: int, layer: str) -> keras.KerasTensor:
    """Returns the output of a layer, or of a sum that is none, at a stride.

    Raises:
        ValueError: If there is none, or it is at another stride.
    """
    outputs = {
        operation.name: operation.output
        for operation in network.operations
        if isinstance(operation.output, keras.KerasTensor)
    }
    side = network.input.shape[1] // stride
    there = {n: x for n, x in outputs.items() if x.shape[1:3] == (side, side)}
    if layer in there:
        return there[layer]
    worth = [n for n in there if n.lower().rstrip("_0123456789").endswith(ENDS)]
    known = f"one of {', '.join(worth)}, or {encoders.NONE}" if worth else encoders.NONE
    where = "at another" if layer in outputs else "no layer of it"
    raise ValueError(
        f"skip_layers must be layers of the encoder at strides 2, 4, 8 and 16, got {layer} "
        f"for stride {stride}, {where}; there give {known}"
    )


def _load(network: keras.Model, shown: str, path: str) -> None:
    """Loads weights from a file, local or gs://.

    Raises:
        ValueError: If there is no such file, or it does not fit what is `shown`.
    """
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise ValueError(
            "encoder_weights must be imagenet, none or a .weights.h5 file, got "
            f"{path}: there is no such file"
        )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        local = path
        if files.remote(path):
            local = os.path.join(folder, os.path.basename(path))
            tf.io.gfile.copy(path, local)
        # Keras adds a hundred lines to the one that says what does not fit.
        warnings.simplefilter("ignore")
        try:
            network.load_weights(local)
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).splitlines()[0].split(". ")[0]
            raise ValueError(
                f"encoder_weights must fit {shown}, got {path}: {reason}"
            ) from None
