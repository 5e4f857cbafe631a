"""The checkpoints of a run: where they are, the latest, the best, those to keep.

    checkpoints/step-00000520.npz, step-00000520.npz.sha256  see `checkpoint`
    checkpoints/checkpoint.json  {"latest": "step-00000520", "best": "step-00000416"}

The pointer moves last, so that a kill at any moment leaves the checkpoint before as it
was. One that its digest does not fit, or that has none, is passed over.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from trainer import checkpoint, files
from trainer.checkpoint import Checkpoint

NAME = re.compile(r"step-(\d{8,})\.npz")
POINTER = "checkpoint.json"


def directory_of(job_dir: str, config_json: Mapping[str, Any]) -> str:
    """Returns where a run keeps its checkpoints, by its config.json, if it has one."""
    # Older ones have it as it was typed, and no more.
    typed = config_json.get("settings", {}).get("checkpoint_dir")
    return config_json.get("checkpoints", typed) or inside(job_dir)


def inside(job_dir: str) -> str:
    """Returns where a run keeps its checkpoints that keeps them in its job_dir."""
    return os.path.join(job_dir, "checkpoints")


def apart(job_dir: str, directory: str) -> bool:
    """Returns whether checkpoints are kept elsewhere than in their job_dir."""
    return files.place(directory) != files.place(inside(job_dir))


def move_pointer(directory: str, *, latest: str, best: str) -> None:
    """Says which checkpoint is the latest and which the best, both whole."""
    path = os.path.join(directory, POINTER)
    files.write_json(path, {"latest": latest, "best": best})


def pointer(directory: str) -> dict[str, str]:
    """Returns the names of the latest and the best; empty where there is no pointer."""
    return files.read_json(os.path.join(directory, POINTER))


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
            saved = checkpoint.load(directory, name)
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


def pointed(
    directory: str, which: str, read: Callable[[str, str], Checkpoint] = checkpoint.load
) -> Checkpoint | None:
    """Returns the "latest" or the "best" of a run that may go on; None before its first.

    Args:
        directory: Where the checkpoints are.
        which: By the pointer.
        read: `checkpoint.load`, or `load_judged`; raises as that does.
    """
    while (name := pointer(directory).get(which)) is not None:
        try:
            return read(directory, name)
        except (ValueError, tf.errors.NotFoundError):
            if pointer(directory).get(which) == name:
                raise
            # The run has saved meanwhile, and deleted what was read.
    return None


def load_initial(path: str) -> Checkpoint:
    """Returns a model to start from, as it was judged: a file's, or a job_dir's best.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    if path.endswith(".npz"):
        saved = checkpoint.load_file(path)
        return dataclasses.replace(saved, arrays=checkpoint.judged(saved.arrays))
    config_json = files.read_json(os.path.join(path, "config.json"))
    directory = directory_of(path, config_json)
    if (best := pointed(directory, "best", checkpoint.load_judged)) is None:
        raise ValueError(
            f"init_from must be a job_dir with checkpoints or a .npz file, got {path}"
        )
    return best


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
