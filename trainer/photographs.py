"""Which photographs a command line means, and what the files made of them are called."""

import collections
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from trainer import files, index
from trainer.folders import PICTURES, readable

NAMED = 3  # Paths that a refusal shows.
Made = dict[tuple[str, ...], str]  # Parts of a file's path -> the folder of its index.


@dataclasses.dataclass(frozen=True)
class Photograph:
    """An image file, and what it is called without its ending where masks are kept."""

    path: str
    name: str  # With "/" where folders are kept apart.


def find(arguments: Sequence[str], left_out: str) -> list[Photograph]:
    """Returns the photographs that arguments mean, each once, in the order given.

    Names begin below the folder that all arguments have in common, so that files of the
    same name in two folders stay apart.

    Args:
        arguments: Files, folders (with all below them, by the endings of pictures; hidden
            files and those of earlier predictions left out) and patterns with *, ? and
            [], local or gs://.
        left_out: Folder whose files are none of them where it lies below where one of
            these looks.

    Raises:
        ValueError: Names the arguments that mean nothing, or a file whose name is no
            UTF-8.
    """
    paths: dict[tuple[str, ...], str] = {}
    made = _made_in(left_out)
    tops, empty = [], []
    for argument in arguments:
        try:
            top, found = _meant(argument, left_out, made)
        except (UnicodeDecodeError, UnicodeEncodeError) as error:  # TensorFlow's.
            raise ValueError(
                f"names of files must be UTF-8, got {readable(error.object)} for "
                f"{readable(argument)}; rename it"
            ) from None
        tops.append(parts(top))
        paths |= {parts(path): path for path in found if parts(path) not in paths}
        if not found:
            empty.append(argument)
    if empty:
        more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        raise ValueError(
            "images must be files, folders of pictures or patterns that fit some, got "
            f"{', '.join(empty[:NAMED])}{more}: nothing is there"
        )
    common = len(os.path.commonprefix(tops))
    return [Photograph(path, _name(key[common:])) for key, path in paths.items()]


def check_targets(
    photographs: Sequence[Photograph],
    output_dir: str,
    endings: Sequence[str],
) -> dict[str, Any]:
    """Refuses to write over a photograph, over another's mask or over what is not ours.

    Args:
        photographs: Of `find`.
        output_dir: Where files are written.
        endings: What they have after a photograph's name, one file for each.

    Returns:
        The index of earlier predictions there; nothing where there is none.

    Raises:
        ValueError: Names the first file that would be lost.
    """
    sources = {files.place(one.path): one.path for one in photographs}
    target_of: dict[str, str] = {}
    for one in photographs:
        for ending in endings:
            target = os.path.join(output_dir, one.name + ending)
            if source := sources.get(files.place(target)):
                raise ValueError(
                    f"output_dir must not be where an image would be written over, got "
                    f"{output_dir} and {source}; give another --output_dir"
                )
            other = target_of.setdefault(target, one.path)
            if other != one.path:
                raise ValueError(
                    "images must have different names without their endings, got "
                    f"{other} and {one.path}, both to become {target}; rename one"
                )
    earlier = index.read(output_dir)
    if not earlier:
        target_of[os.path.join(output_dir, index.NAME)] = index.NAME
    seen = earlier.get("images", {})
    for one in photographs:
        if seen.get(one.name, files.place(one.path)) != files.place(one.path):
            raise ValueError(
                f"output_dir must not hold the mask of another image of that name, got "
                f"{output_dir} with that of {seen[one.name]} for {one.path}; give another"
            )
    anew = {os.path.join(output_dir, name) for name in index.written(earlier)}
    by_folder = collections.defaultdict(set)
    for target in target_of.keys() - anew:
        by_folder[os.path.dirname(target)].add(os.path.basename(target))
    for folder, names in by_folder.items():
        there = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
        if lost := sorted(names & set(there)):
            raise ValueError(
                f"output_dir must hold no files but of an earlier prediction, got "
                f"{output_dir} with {os.path.join(folder, lost[0])}; give another"
            )
    return earlier


def parts(path: str) -> tuple[str, ...]:
    """Returns the names on the way to a path, its store first where there is one."""
    whole = path if files.remote(path) else os.path.abspath(path)
    return tuple(part for part in whole.split("/") if part)


def _meant(argument: str, left_out: str, made: Made) -> tuple[str, list[str]]:
    """Returns the folder in which one argument looks, and the files that it means."""
    if tf.io.gfile.isdir(argument):
        out = _below(argument, left_out)
        return argument, _pictures_below(argument, out, made)
    if tf.io.gfile.exists(argument):  # Its name may have a bracket.
        return os.path.dirname(argument), [argument]
    top = argument
    while any(sign in top for sign in "*?["):
        top = os.path.dirname(top)
    found: list[str] = []
    out = _below(top, left_out)
    for match in sorted(tf.io.gfile.glob(argument)) if top != argument else []:
        if tf.io.gfile.isdir(match):
            found += _pictures_below(match, out, made)
        elif not _is_in(match, out):
            found.append(match)
    return top, found


def _below(top: str, folder: str) -> tuple[str, ...]:
    """Returns the parts of a folder that lies below another; none where it does not."""
    above, out = parts(top), parts(folder)
    return out if len(out) > len(above) and out[: len(above)] == above else ()


def _is_in(path: str, folder: tuple[str, ...]) -> bool:
    """Returns whether a path lies in a folder of some parts, or is that."""
    return bool(folder) and parts(path)[: len(folder)] == folder


def _made_in(folder: str) -> Made:
    """Returns the files of a prediction in a folder, by the parts of their paths."""
    names = index.written(index.read(folder))
    return {parts(os.path.join(folder, name)): folder for name in names}


def _pictures_below(folder: str, left_out: tuple[str, ...], made: Made) -> list[str]:
    """Returns the pictures of a folder and of all below it but one's, sorted.

    Args:
        folder: Where to look.
        left_out: Parts of the folder whose files are none.
        made: Files of an earlier prediction, which are none either, as are those that the
            folders below tell of.
    """
    found: list[str] = []
    for directory, _, names in tf.io.gfile.walk(folder):
        below = parts(directory)[len(parts(folder)) :]
        hidden = any(name.startswith(".") for name in below)
        if hidden or _is_in(directory, left_out):
            continue
        shown = (name for name in names if not name.startswith("."))
        is_picture = (n for n in shown if os.path.splitext(n)[1].lower() in PICTURES)
        found += [os.path.join(directory, name) for name in is_picture]
        if index.NAME in names:
            made = made | _made_in(directory)
    in_of = {path: made.get(parts(path)) for path in found}
    for directory, count in collections.Counter(in_of.values()).items():
        if directory is not None:
            logging.info("left out %d files of a prediction in %s", count, directory)
    return sorted(path for path in found if in_of[path] is None)


def _name(below: tuple[str, ...]) -> str:
    """Returns a photograph's name, of the parts of its path that count."""
    # "gs:" is among them where some photographs are in a store and some are not.
    name = "/".join(below).replace(":/", "/")
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in PICTURES else name
