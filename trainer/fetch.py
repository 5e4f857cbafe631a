"""One of TFDS' own data sets, downloaded, prepared and put into a data directory."""

import contextlib
import io
import os
import pathlib
import shlex
import sys

import tensorflow as tf
import tensorflow_datasets as tfds

from trainer import dataset, files, shards


def folder_of(name: str, data_dir: str) -> str:
    """Returns the path that TFDS gives a data set in `data_dir`: name, version.

    Raises:
        ValueError: If TFDS has no such data set, or `data_dir` holds it already.
    """
    builder = _builder(name, data_dir)
    target = os.fspath(builder.data_path)
    if tf.io.gfile.exists(os.path.join(target, shards.LAST)):
        raise ValueError(
            f"dataset must be new to data_dir, got {name}, which {target} holds already; "
            f"train on it: {training(name, data_dir)}"
        )
    if not files.remote(target) and os.path.isdir(target) and os.listdir(target):
        raise ValueError(
            f"dataset must be new to data_dir, got {name}, with part of it or something "
            f"else in {target}; move that away"
        )
    return builder.info.full_name


def fetch(name: str, data_dir: str, folder: str, download_dir: str | None) -> str:
    """Returns where the data set is, whole; nothing is left where it fails.

    Args:
        name: One of TFDS' own.
        data_dir: Where it is to be, local or gs://.
        folder: What `folder_of` returned.
        download_dir: Folder that keeps the archives, and is worked in for a bucket; a
            temporary one when absent.

    Raises:
        OSError: If it cannot be downloaded or prepared.
    """
    if download_dir:
        os.makedirs(download_dir, exist_ok=True)

    def make(empty: pathlib.Path) -> pathlib.Path:
        builder = _builder(name, str(empty))
        archives = download_dir or empty / "downloads"
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        # It prints where it works, and that this is for good.
        with contextlib.redirect_stdout(io.StringIO()):
            dataset.prepare(builder, download_dir=archives)
        return pathlib.Path(builder.data_path)

    return shards.put_whole(data_dir, folder, make, made_in=download_dir)


def training(name: str, data_dir: str) -> str:
    """Returns the command that trains on a data set, as far as we know its masks."""
    command = (
        f"python -m trainer.task --dataset={name} --data_dir={shlex.quote(data_dir)}"
    )
    known = name.split(":")[0].split("/")[0] in dataset.KNOWN
    return command if known else f"{command} --mask_feature=... --class_names=..."


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns TFDS' builder of a data set.

    Raises:
        ValueError: If there is none.
    """
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:
        raise ValueError(
            f"dataset must be one of TFDS' own, got {name}: {dataset.reason(error)}"
        ) from None
