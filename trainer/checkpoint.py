"""A checkpoint, which is whole or does not count: weights, optimizer and state.

    step-00000520.npz         what was saved at step 520, as numpy.savez writes it
    step-00000520.npz.sha256  its digest, as sha256sum writes it

The digest is written last, so that a kill at any moment leaves none that seems whole.
"""

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import averaging, files

STATE = "state"  # Name of the JSON text among the arrays.
MODEL, AVERAGE = "model/", "average/"  # What the names of weights and means begin with.
BLOCK_BYTES = 2**20  # Read at once for the digest.


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was saved at one step."""

    name: str
    arrays: dict[str, np.ndarray]  # Of each variable, by `named_variables`.
    state: dict[str, Any]  # JSON: what is not a variable; "step" among it.
    passed_over: tuple[str, ...] = ()  # Newer ones that are damaged.


def name_of(step: int) -> str:
    """Returns the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def named_variables(
    model: keras.Model,
    optimizer: keras.Optimizer | None = None,
    average: averaging.Average | None = None,
) -> dict[str, keras.Variable]:
    """Returns the variables to save, by the names they are saved under."""
    named = {f"{MODEL}{v.path}": v for v in model.weights}
    if optimizer is not None:
        named |= {f"optimizer/{v.path}": v for v in optimizer.variables}
    if average is not None:
        named |= {f"{AVERAGE}{path}": mean for path, mean in average.by_path.items()}
    return named


def values(variables: dict[str, keras.Variable]) -> dict[str, np.ndarray]:
    """Returns what each variable holds now, on the host.

    On a CPU nothing is copied: TensorFlow gives a variable that is written to while
    its value is held elsewhere a buffer of its own.
    """
    return {
        name: np.asarray(tf.convert_to_tensor(v.value)) for name, v in variables.items()
    }


def assign(arrays: dict[str, np.ndarray], variables: dict[str, keras.Variable]) -> None:
    """Sets each variable to what was saved, on all replicas.

    Raises:
        ValueError: If a variable is missing or of another shape; nothing is set then.
    """
    for name, variable in variables.items():
        shape = tuple(variable.shape)
        if name not in arrays:
            raise ValueError(f"the checkpoint must have {name}, got none of that name")
        if arrays[name].shape != shape:
            raise ValueError(
                f"the checkpoint's {name} must be of shape {shape}, got "
                f"{arrays[name].shape}"
            )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def save(
    directory: str,
    arrays: dict[str, np.ndarray],
    state: dict[str, Any],
    fence: Callable[[], None] = lambda: None,
) -> str:
    """Writes a checkpoint: the data, its digest; returns its name. Moves no pointer.

    Args:
        directory: Where the checkpoints are.
        arrays: Of each variable.
        state: JSON, with "step".
        fence: Raises OSError where another run may write; asked before the digest,
            since the data may take long.

    Raises:
        OSError: If the file is not as long as what was written.
    """
    files.make_directory(directory)
    name = name_of(state["step"])
    path = os.path.join(directory, f"{name}.npz")
    everything: dict[str, Any] = {**arrays, STATE: np.array(json.dumps(state))}
    with files.writing(path) as file:
        digested = _Digested(file)
        with zipfile.ZipFile(digested, "w") as archive:  # What np.savez would write.
            for key, array in everything.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    if _size(path) != digested.size:
        raise OSError(f"{path} is {_size(path)} bytes long, of {digested.size} written")
    fence()
    with files.writing(f"{path}.sha256") as file:
        file.write(f"{digested.sha256.hexdigest()}  {name}.npz\n")
    return name


class _Digested(io.RawIOBase):
    """A file written from head to tail, with the size and digest of what it got.

    So a checkpoint need not be held in memory whole.
    """

    def __init__(self, file: tf.io.gfile.GFile) -> None:
        self._file = file
        self.sha256, self.size = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Appends to the file."""
        self._file.write(bytes(data))
        self.sha256.update(data)
        self.size += len(data)
        return len(data)


def load(directory: str, name: str, prefix: str | tuple[str, ...] = "") -> Checkpoint:
    """Returns a checkpoint whose digest holds.

    Args:
        directory: Where the checkpoints are.
        name: Its name.
        prefix: Of the arrays that are wanted, or several.

    Raises:
        ValueError: If it is missing, cut short or changed.
    """
    path = os.path.join(directory, f"{name}.npz")
    sha256 = hashlib.sha256()
    try:
        with tf.io.gfile.GFile(f"{path}.sha256", "rb") as file:
            digest = file.read().split()[:1]
        with tf.io.gfile.GFile(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                sha256.update(block)
    except tf.errors.NotFoundError:
        raise ValueError(
            f"{path} must have its data and digest, got one only"
        ) from None
    if digest != [sha256.hexdigest().encode()]:
        raise ValueError(
            f"{path} must fit its digest, got {_size(path)} bytes that do not"
        )
    return _parsed(path, prefix)


def load_judged(directory: str, name: str) -> Checkpoint:
    """Returns a checkpoint's model as it was judged, see `judged`; raises as `load`."""
    saved = load(directory, name, prefix=(MODEL, AVERAGE))
    return dataclasses.replace(saved, arrays=judged(saved.arrays))


def judged(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays with the means of the weights, where there are any, for these."""
    means = {
        MODEL + name.removeprefix(AVERAGE): mean
        for name, mean in arrays.items()
        if name.startswith(AVERAGE)
    }
    return arrays | means


def _size(path: str) -> int:
    return tf.io.gfile.stat(path).length


def _parsed(path: str, prefix: str | tuple[str, ...] = "") -> Checkpoint:
    name = os.path.basename(path).removesuffix(".npz")
    try:
        with tf.io.gfile.GFile(path, "rb") as file, np.load(file) as archive:
            state = json.loads(str(archive[STATE]))
            wanted = [n for n in archive.files if n.startswith(prefix) and n != STATE]
            return Checkpoint(name, {n: archive[n] for n in wanted}, state)
    except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} must be a checkpoint of this program, got {_size(path)} bytes "
            "that are none"
        ) from None


def load_file(path: str) -> Checkpoint:
    """Returns the checkpoint at a path, whose digest must hold where it has one.

    Raises:
        ValueError: If it is not a whole checkpoint.
    """
    if tf.io.gfile.exists(f"{path}.sha256"):
        name = os.path.basename(path).removesuffix(".npz")
        return load(os.path.dirname(path), name)
    try:
        return _parsed(path)
    except tf.errors.OpError as error:
        raise ValueError(
            f"{path} must be a checkpoint: {error.message.splitlines()[0]}"
        ) from None
