"""Checkpoints that are whole or do not count.

    checkpoints/step-00000520.npz         weights, optimizer and state at step 520
    checkpoints/step-00000520.npz.sha256  its digest, as sha256sum writes it
    checkpoints/checkpoint.json           {"latest": "step-00000520", "best": ...}

They are written in this order, so that a kill at any moment leaves the one before as
it was. One that its digest does not fit, or that has none, is passed over.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from trainer import averaging, files

NAME = re.compile(r"step-(\d{8,})\.npz")
POINTER = "checkpoint.json"
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


def directory_of(job_dir: str, config_json: Mapping[str, Any]) -> str:
    """Returns where a run keeps its checkpoints, by its config.json, if it has one."""
    apart = config_json.get("checkpoints")
    # As it was typed; older ones have no more.
    apart = apart or config_json.get("settings", {}).get("checkpoint_dir")
    return apart or inside(job_dir)


def inside(job_dir: str) -> str:
    """Returns where a run keeps its checkpoints that keeps them in its job_dir."""
    return os.path.join(job_dir, "checkpoints")


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


def move_pointer(directory: str, *, latest: str, best: str) -> None:
    """Says which checkpoint is the latest and which the best, both whole."""
    path = os.path.join(directory, POINTER)
    files.write_json(path, {"latest": latest, "best": best})


def pointer(directory: str) -> dict[str, str]:
    """Returns the names of the latest and the best; empty where there is no pointer."""
    return files.read_json(os.path.join(directory, POINTER))


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


def pointed(
    directory: str, which: str, read: Callable[[str, str], Checkpoint] = load
) -> Checkpoint | None:
    """Returns the "latest" or the "best" of a run that may go on; None before its first.

    Args:
        directory: Where the checkpoints are.
        which: By the pointer.
        read: `load`, or `load_judged`; raises as that does.
    """
    while (name := pointer(directory).get(which)) is not None:
        try:
            return read(directory, name)
        except (ValueError, tf.errors.NotFoundError):
            if pointer(directory).get(which) == name:
                raise
            # The run has saved meanwhile, and deleted what was read.
    return None


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


def load_initial(path: str) -> Checkpoint:
    """Returns a model to start from, as it was judged: a file's, or a job_dir's best.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    if path.endswith(".npz"):
        saved = load_file(path)
        return dataclasses.replace(saved, arrays=judged(saved.arrays))
    config_json = files.read_json(os.path.join(path, "config.json"))
    directory = directory_of(path, config_json)
    if (best := pointed(directory, "best", load_judged)) is None:
        raise ValueError(
            f"init_from must be a job_dir with checkpoints or a .npz file, got {path}"
        )
    return best


def names(directory: str) -> list[str]:
    """Returns the checkpoints in a directory, whole or not, the newest first."""
    if not tf.io.gfile.isdir(directory):
        return []
    found = [f for f in tf.io.gfile.listdir(directory) if NAME.fullmatch(f)]
    found.sort(key=lambda f: int(NAME.fullmatch(f)[1]), reverse=True)  # type: ignore[index]
    return [f.removesuffix(".npz") for f in found]


def load_latest(directory: str) -> Checkpoint | None:
    """Returns the newest whole checkpoint; warns of each that it passes over.

    Raises:
        ValueError: If the pointer says that there are some, and none is whole.
    """
    passed_over: list[str] = []
    for name in names(directory):
        try:
            saved = load(directory, name)
            return dataclasses.replace(saved, passed_over=tuple(passed_over))
        except ValueError as error:
            logging.warning("Passed over: %s", error)
            passed_over.append(name)
    if pointer(directory):
        raise ValueError(
            f"{directory} must hold a whole checkpoint, got "
            f"{', '.join(passed_over) or 'no file'}, none whole; start in another job_dir"
        )
    return None


def prune(
    directory: str,
    keep: int,
    best_at: Callable[[str], str] = lambda name: name,
    damaged: Collection[str] = (),
) -> None:
    """Deletes all but the best, the latest and the `keep - 1` before it, and their best.

    Those after the latest are left alone: they were passed over, not written by us.

    Args:
        directory: Where the checkpoints are.
        keep: How many stay, the best apart.
        best_at: Gives the best as it was when one was written: who goes on from that
            one will need it.
        damaged: Those that were passed over; they take no good one's place.
    """
    at = pointer(directory)
    written = [name for name in names(directory) if name <= at["latest"]]
    # What a kill left without a digest takes none either.
    kept = [
        name
        for name in written
        if name not in damaged
        and tf.io.gfile.exists(os.path.join(directory, f"{name}.npz.sha256"))
    ][:keep]
    kept += [at["best"], *map(best_at, kept)]
    for name in written:
        if name not in kept:
            path = os.path.join(directory, f"{name}.npz")
            # The digest goes first: without it, what is left does not count.
            for file in (f"{path}.sha256", path):
                if tf.io.gfile.exists(file):
                    tf.io.gfile.remove(file)
