"""Files written whole, local or gs://: a reader sees the old one or the new one."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

BLOCK_BYTES = 2**20  # Copied at once.
# Objects that could not be written. TensorFlow writes such a one again when its file is
# deleted, whoever else writes there by then: they are held until the process has ended.
_unwritten: list[tf.io.gfile.GFile] = []


def remote(path: str) -> bool:
    """Returns whether a path is of a store of objects, such as gs://.

    An object appears whole or not at all, and changing it means writing it again.
    """
    return "://" in path


def place(path: str) -> str:
    """Returns a path as it is called from anywhere."""
    path = path.rstrip("/")
    return path if remote(path) else os.path.realpath(path)


def make_directory(path: str) -> None:
    """Makes a directory and those above it; a store of objects needs none."""
    if not remote(path):
        tf.io.gfile.makedirs(path)


@contextlib.contextmanager
def writing(path: str) -> Iterator[tf.io.gfile.GFile]:
    """Gives a file to write to; an object is there when this is left without an error."""
    file = tf.io.gfile.GFile(path, "wb")
    try:
        yield file
        file.close()
    except BaseException:
        if remote(path):
            _unwritten.append(file)
        else:
            file.close()
        raise


def write(path: str, data: bytes | str) -> None:
    """Writes a file whole."""
    whole = path if remote(path) else f"{path}.tmp"
    with writing(whole) as file:
        file.write(data)
    if whole != path:
        tf.io.gfile.rename(whole, path, overwrite=True)


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file whole."""
    write(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str) -> dict[str, Any]:
    """Returns what a JSON file holds; nothing where it is missing or no JSON object."""
    try:
        with tf.io.gfile.GFile(path) as file:
            value = json.load(file)
    except (tf.errors.NotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    except tf.errors.FailedPreconditionError:
        # Of a disk: a file is in the way of its folder. A store may mean another thing,
        # and a run would begin anew where its checkpoints are not found.
        if remote(path):
            raise
        return {}
    return value if isinstance(value, dict) else {}


def copy(source: pathlib.Path, target: str) -> None:
    """Copies a file of this machine."""
    with open(source, "rb") as read, writing(target) as file:
        while block := read.read(BLOCK_BYTES):
            file.write(block)


def upload(
    folder: pathlib.Path,
    target: str,
    *,
    first: str = "",
    last: str = "",
    fence: Callable[[], None] = lambda: None,
) -> None:
    """Copies all files of a local folder; where it stops, it takes them back.

    Args:
        folder: With files and folders of them.
        target: Directory to copy into.
        first: Name of the file by which what a kill leaves is known.
        last: Name of the file without which nobody opens the rest.
        fence: Raises OSError where another may write by now; asked before each file.
    """
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(str(path.relative_to(folder)) for path in paths)
    copied: list[str] = []
    try:
        for name in sorted(names, key=lambda name: (name == last) - (name == first)):
            fence()
            copied.append(os.path.join(target, name))
            copy(folder / name, copied[-1])
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):  # What stopped it is told.
            for path in reversed(copied):
                if tf.io.gfile.exists(path):
                    tf.io.gfile.remove(path)
        raise
