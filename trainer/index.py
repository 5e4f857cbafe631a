"""classes.json beside masks: what their ids mean, and which files there are ours."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from trainer import files

NAME = "classes.json"
MASK, OVERLAY, PROBABILITIES = ".png", "_overlay.jpg", ".npz"


def read(folder: str) -> dict[str, Any]:
    """Returns what predictions wrote into a folder's index; nothing of others."""
    found = files.read_json(os.path.join(folder, NAME))
    ours = {"classes", "checkpoint", "step"} <= found.keys()
    return found if ours and isinstance(found.get("images"), dict) else {}


def written(index: Mapping[str, Any]) -> set[str]:
    """Returns the files that an index tells of, by their names below its folder."""
    endings = index.get("endings", {})
    return {name + ending for name in endings for ending in endings[name]}


def write(
    folder: str,
    earlier: Mapping[str, Any],
    about: Mapping[str, Any],
    images: Mapping[str, str],
    endings: Sequence[str],
) -> None:
    """Writes an index to which a prediction adds its images.

    Args:
        folder: Where it writes.
        earlier: What `read` returned of it.
        about: The classes, and of which model the last prediction is.
        images: Path of each, by its name below the folder.
        endings: What the files have after a name that are made of it.
    """
    seen, known = earlier.get("images", {}), earlier.get("endings", {})
    of_each = {name: sorted({*known.get(name, ()), *endings}) for name in images}
    whole = {**about, "images": {**seen, **images}, "endings": {**known, **of_each}}
    files.write_json(os.path.join(folder, NAME), whole)


def take_back(folder: str, earlier: Mapping[str, Any], names: Iterable[str]) -> None:
    """Leaves in an index only what there is of images that were not wholly written.

    Args:
        folder: Whose index it is; another prediction may have added to it since.
        earlier: What `read` returned before `write`.
        names: Of those images.
    """
    index, names = read(folder), list(names)
    there: set[str] = set()
    for below in {os.path.dirname(name) for name in names}:
        path = os.path.join(folder, below)
        if tf.io.gfile.isdir(path):
            there |= {os.path.join(below, file) for file in tf.io.gfile.listdir(path)}
    images, endings = index.get("images", {}), index.get("endings", {})
    for name in names:
        made = [e for e in endings.get(name, ()) if name + e in there]
        kept = {*earlier.get("endings", {}).get(name, ()), *made}
        if kept:
            endings[name] = sorted(kept)
        elif name not in earlier.get("images", {}):
            images.pop(name, None)
            endings.pop(name, None)
    if index:
        files.write_json(os.path.join(folder, NAME), index)
