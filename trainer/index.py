"""classes.json beside masks: what their ids mean, and which files there are ours."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    any_of = (MASK, OVERLAY, PROBABILITIES)  # One that is older does not say which.
    known = index.get("endings", {})
    return {
        name + ending
        for name in index.get("images", {})
        for ending in known.get(name, any_of)
    }


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
    of_each = {
        name: sorted({*known.get(name, ()), *endings})
        for name in images
        if name in known or name not in seen
    }
    whole = {**about, "images": {**seen, **images}, "endings": {**known, **of_each}}
    files.write_json(os.path.join(folder, NAME), whole)


def take_back(folder: str, earlier: Mapping[str, Any], names: Iterable[str]) -> None:
    """Writes of some names what was told before: nothing was made of them now.

    Args:
        folder: Whose index it is; another prediction may have added to it since.
        earlier: What `read` returned before `write`.
        names: Of those images.
    """
    index = read(folder)
    for key in index.keys() & {"images", "endings"}:
        before = earlier.get(key, {})
        for name in names:
            index[key].pop(name, None)
            index[key] |= {name: before[name]} if name in before else {}
    if index:
        files.write_json(os.path.join(folder, NAME), index)
