"""An exported model put in its place whole: a reader finds all of it, or no model.

    1/                  saved_model.pb, variables/, model.json, *.tflite
    .segtrainer-new-1/  being written; renamed in the end
    .segtrainer-old-1/  the one before, on its way out

On gs:// nothing is renamed: saved_model.pb goes first and comes last, model.json, by which
the rest is known to be ours, comes first and goes last.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import tensorflow as tf

from trainer import files

PROGRAM = "segtrainer"
ABOUT = "model.json"
MODEL = "saved_model.pb"
LITERT, LITERT_INT8 = "model.tflite", "model_int8.tflite"
OURS = {ABOUT, MODEL, LITERT, LITERT_INT8, "fingerprint.pb"}
FOLDERS = {"variables", "assets"}


def check(setting: str, target: str) -> None:
    """Refuses to write over what is not an earlier export.

    Args:
        setting: That says where, for the message.
        target: Directory of the model.

    Raises:
        ValueError: Names the first file that would be lost.
    """
    rule = f"{setting} must be new or hold an earlier export"
    if not tf.io.gfile.isdir(target):
        if tf.io.gfile.exists(target):
            raise ValueError(f"{rule}, got the file {target}; give another")
        return
    names = sorted(_below(target))
    about = files.read_json(os.path.join(target, ABOUT))
    known = about.get("program") == PROGRAM
    lost = [n for n in names if not known or n.split("/")[0] not in OURS | FOLDERS]
    if lost:
        raise ValueError(
            f"{rule} and nothing else, got {os.path.join(target, lost[0])}; give another, "
            "or move it away"
        )


def put(
    target: str,
    make: Callable[[str], None],
    fence: Callable[[], None] = lambda: None,
) -> None:
    """Makes a model, and puts it in its place.

    Args:
        target: Directory of the model, local or gs://.
        make: Writes all files of it into the empty local directory that it is given.
        fence: Raises OSError where another may write by now.

    Raises:
        ValueError: If something else is there.
    """
    check("the export's place", target)
    if files.remote(target):
        with tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-") as folder:
            make(folder)
            _remove(target, fence)
            files.upload(
                pathlib.Path(folder), target, first=ABOUT, last=MODEL, fence=fence
            )
        return
    target = os.path.abspath(target)
    above, name = os.path.split(target)
    new, old = (
        os.path.join(above, f".{PROGRAM}-{age}-{name}") for age in ("new", "old")
    )
    # By one that was killed.
    shutil.rmtree(new, ignore_errors=True)
    if os.path.isdir(old) and not os.path.isdir(target):
        os.rename(old, target)
    _remove_local(old)
    made_above = not os.path.isdir(above)
    try:
        os.makedirs(new)
        make(new)
        fence()
        if os.path.isdir(target):
            os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if os.path.isdir(old) and not os.path.isdir(target):
            os.rename(old, target)
        shutil.rmtree(new, ignore_errors=True)
        if made_above and os.path.isdir(above) and not os.listdir(above):
            os.rmdir(above)
        raise
    _remove_local(old)


def _remove_local(folder: str) -> None:
    """Removes a folder of the disk, if it is there; of a link to one, the link."""
    if os.path.islink(folder):
        os.unlink(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _remove(target: str, fence: Callable[[], None]) -> None:
    """Removes an earlier export, or what is left of one, from a store of objects."""
    if not tf.io.gfile.isdir(target):
        return
    names = sorted(_below(target), key=lambda name: (name == ABOUT) - (name == MODEL))
    for name in names:
        fence()
        tf.io.gfile.remove(os.path.join(target, name))


def _below(folder: str) -> Iterator[str]:
    """Yields the paths of all files in a folder and below it, from there."""
    for directory, _, names in tf.io.gfile.walk(folder):
        below = directory[len(folder) :].strip("/")
        yield from (os.path.join(below, name) for name in names if name)
