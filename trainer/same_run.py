"""That a run which goes on, and each of its workers, is the run that was begun."""

import json
import os
import uuid
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import (
    checkpoint,
    checkpoint_folder,
    config,
    distribution,
    files,
    run_files,
)

# What is known of a data set without reading it, and what it is called.
DATA = {
    "examples": "{} examples in the shards of train and in validation",
    "class_names": "of the classes {}",
    "mask_offset": "with a mask_offset of {}",
    "ignore_id": "with an ignore_id of {}",
    "num_bytes": "{} bytes in train and in validation",
}


def check_place(directories: config.Directories, saved: checkpoint.Checkpoint) -> None:
    """Raises ValueError if checkpoints that are kept elsewhere are another run's."""
    ours, theirs = files.place(directories.job), saved.state.get("job_dir")
    apart = checkpoint_folder.apart(directories.job, directories.checkpoints)
    if apart and theirs not in (None, ours):
        raise ValueError(
            f"checkpoint_dir must be the run's own, got {directories.checkpoints} with "
            f"those of {theirs}; give another --checkpoint_dir for a new run"
        )


def check_begun(directories: config.Directories) -> None:
    """Raises ValueError where there are no checkpoints, but a run that has or had some."""
    config_json = files.read_json(os.path.join(directories.job, "config.json"))
    theirs = checkpoint_folder.directory_of(directories.job, config_json)
    apart = files.place(theirs) != files.place(directories.checkpoints)
    if apart and checkpoint_folder.pointer(theirs):
        raise ValueError(
            f"checkpoint_dir must stay {theirs} to go on with the run of "
            f"{directories.job}, got {directories.checkpoints}; give another --job_dir "
            "for a new run"
        )
    if run_files.read_result(directories.job):
        raise ValueError(
            "job_dir must hold the checkpoints of its finished run, got "
            f"{directories.job} with a result.json and none; give another --job_dir for "
            "a new run"
        )


def check_settings(state: dict[str, Any], saved: checkpoint.Checkpoint) -> None:
    """Raises ValueError if the saved run is another than the one asked for."""
    ours, theirs = state["settings"], saved.state["settings"]
    # A setting that came after the checkpoint had its default's effect.
    theirs = config.identity(config.Config()) | theirs
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{name} must stay {theirs.get(name)!r} to go on from {saved.name}, got "
                f"{ours.get(name)!r}; give another --job_dir for a new run"
            )
    for name, what in DATA.items():
        # One that came after the checkpoint was not looked at.
        if (theirs := saved.state.get(name, state[name])) != state[name]:
            raise ValueError(
                f"the data must stay what {saved.name} was trained on, "
                f"{what.format(theirs)}, got {state[name]}; give another --job_dir for a "
                "new run"
            )


def global_batch(
    settings: config.Config,
    strategy: tf.distribute.Strategy,
    saved: checkpoint.Checkpoint | None,
) -> int:
    """Returns the examples per step: what the run began with, on any replicas.

    Raises:
        ValueError: If others are asked for than it began with.
    """
    replicas = strategy.num_replicas_in_sync
    asked = settings.global_batch_size
    if saved is None:
        return distribution.global_batch(replicas, settings.batch_size, asked)
    began, batch_size = saved.state["global_batch_size"], settings.batch_size
    changed = batch_size != saved.state["batch_size"]
    if asked is None and changed and batch_size * replicas != began:
        raise ValueError(
            f"batch_size must stay {saved.state['batch_size']} to go on from "
            f"{saved.name}, whose steps are of {began} examples, got {batch_size} on each "
            f"of {replicas} replicas; give another --job_dir for a new run"
        )
    if asked not in (None, began):
        raise ValueError(
            f"global_batch_size must stay {began} to go on from {saved.name}, got "
            f"{asked}; give another --job_dir for a new run"
        )
    if began % replicas:
        raise ValueError(
            f"replicas must divide the {began} examples of a step to go on from "
            f"{saved.name}, got {replicas}; take so many devices, or give another "
            "--job_dir for a new run"
        )
    return began


def check_on_all(
    workers: distribution.Workers, settings: config.Config, state: dict[str, Any]
) -> None:
    """Raises ValueError if this worker was not given what the chief was."""
    shared = config.to_dict(settings)
    del shared["data_dir"]  # May be another place on each machine, with the same data.
    told = json.dumps([shared, *(state[name] for name in DATA)], sort_keys=True)
    digest = zlib.crc32(told.encode())
    if workers.chiefs(digest) != [digest]:
        raise ValueError(
            "all workers must be given the same flags and data, got worker "
            f"{workers.index} with others than the chief; start them with one command"
        )


def check_weights(
    workers: distribution.Workers, arrays: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError if this worker begins with other weights than the chief."""
    digest = 0
    for array in arrays.values():
        digest = zlib.crc32(array.tobytes(), digest)
    if workers.chiefs(digest) != [digest]:
        raise ValueError(
            "all workers must begin with the same weights, got others on worker "
            f"{workers.index} than the chief has; give --init_from and "
            "--encoder_weights what is the same on all of them"
        )


def check_shared(workers: distribution.Workers, setting: str, directory: str) -> None:
    """Raises ValueError if this worker does not find what the chief writes there."""
    [number] = workers.chiefs(uuid.uuid4().int >> 65)
    path = os.path.join(directory, f".may-we-{number:x}")
    if workers.is_chief:
        files.make_directory(directory)
        files.write(path, "?")
    workers.wait()
    is_there = tf.io.gfile.exists(path)
    workers.wait()
    if workers.is_chief:
        tf.io.gfile.remove(path)
    if not is_there:
        raise ValueError(
            f"{setting} must be one that all workers read, got {directory}, where worker "
            f"{workers.index} does not find what the chief has written"
        )


def as_the_chief(
    workers: distribution.Workers, directory: str, saved: checkpoint.Checkpoint | None
) -> checkpoint.Checkpoint | None:
    """Returns what the chief restores, which another worker may have seen otherwise.

    Raises:
        ValueError: If this worker cannot read it.
    """
    [at] = workers.chiefs(saved.state["step"] if saved else -1)
    if at == (saved.state["step"] if saved else -1):
        return saved
    if at < 0:
        return None
    try:
        return checkpoint.load(directory, checkpoint.name_of(at))
    except ValueError as error:
        raise ValueError(
            f"job_dir must be one that all workers read, got {directory}, where worker "
            f"{workers.index} does not find what the chief goes on from: {error}"
        ) from None
