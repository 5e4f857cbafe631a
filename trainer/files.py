"""Files written whole, local or gs://: a reader sees the old one or the new one."""

import json
from typing import Any

import tensorflow as tf


def remote(path: str) -> bool:
    """Returns whether a path is of a store of objects, such as gs://.

    An object appears whole or not at all, and changing it means writing it again.
    """
    return "://" in path


def make_directory(path: str) -> None:
    """Makes a directory and those above it; a store of objects needs none."""
    if not remote(path):
        tf.io.gfile.makedirs(path)


def write(path: str, data: bytes | str) -> None:
    """Writes a file whole."""
    if remote(path):
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(data)
        return
    with tf.io.gfile.GFile(f"{path}.tmp", "wb") as file:
        file.write(data)
    tf.io.gfile.rename(f"{path}.tmp", path, overwrite=True)


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
    return value if isinstance(value, dict) else {}
