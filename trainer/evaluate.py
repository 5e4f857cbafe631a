"""How good a run's model is: exact metrics of a split, and its worst examples.

    python -m trainer.evaluate --job_dir=runs/cars --at=original --tta=flip

Exit codes: 0 evaluated; 1 stopped on the way; 2 refused, nothing written.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trainer import command, evaluation
from trainer.evaluation import Evaluation

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.dataset import Dataset, Split
    from trainer.trained import Trained

PANEL = 256  # Side of a picture of an example that is judged at its own size, pixels.


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates a run's model; returns the exit code."""
    args = sys.argv[1:] if argv is None else argv
    about = "Evaluates a trained model: exact metrics, and its worst examples."
    return command.run(about, Evaluation, args, _ready)


def _ready(settings: Evaluation) -> Callable[[], int]:
    """Returns the work, all that could refuse it having been looked at."""
    from trainer import bucket, dataset, files, run_files, trained

    assert settings.job_dir
    output_dir = settings.output_dir or settings.job_dir
    model = trained.load(settings.job_dir, settings.checkpoint)
    where = "output_dir" if settings.output_dir else "job_dir"
    if files.remote(output_dir):
        bucket.check(where, output_dir, bucket.WRITE)
    else:
        run_files.check_directory(where, output_dir)
    of_run = model.settings
    if settings.data_dir:
        of_run = dataclasses.replace(of_run, data_dir=settings.data_dir, try_gcs=False)
    data_dir = trained.data_dir(of_run)
    opened = _opened(data_dir, of_run, model)
    split = dataset.limited(_split(settings, opened, model), settings.limit_examples)
    about = {
        "job_dir": files.place(settings.job_dir),
        "checkpoint": model.checkpoint,
        "step": model.step,
        "dataset": opened.name,
        "version": opened.version,
        "data_dir": files.place(data_dir) if data_dir else None,
        "split": settings.split,
        "examples": len(split.ids),
        "at": settings.at,
        "tta": settings.tta,
        "window": settings.window,
        "overlap": settings.overlap if settings.window == "slide" else None,
        "class_names": list(opened.class_names),
    }
    called = evaluation.name(settings)
    path = os.path.join(output_dir, f"{called}.json")
    picture = run_files.picture_path(output_dir, called)
    same = ["data_dir", *(["job_dir"] * bool(settings.output_dir))]
    _check_target(path, picture, about, same)
    return functools.partial(
        _evaluate, settings, model, opened, split, path, picture, about
    )


def _opened(data_dir: str | None, of_run: "Config", model: "Trained") -> "Dataset":
    """Returns the data set of a run, checked to have the model's classes."""
    import tensorflow as tf

    from trainer import bucket, files, trained

    if data_dir and files.remote(data_dir):
        bucket.check("data_dir", data_dir, bucket.READ)
    elif data_dir and not tf.io.gfile.isdir(data_dir):
        raise ValueError(
            f"data_dir must be a directory, got {data_dir}: there is none; say where the "
            "run's data set lies now: --data_dir=..."
        )
    opened = trained.open_dataset(of_run)
    if opened.class_names != model.class_names:
        raise ValueError(
            "data_dir must hold a data set of the model's classes, "
            f"{', '.join(model.class_names)}, got {data_dir} with "
            f"{', '.join(opened.class_names)}"
        )
    return opened


def _split(settings: Evaluation, opened: "Dataset", model: "Trained") -> "Split":
    """Returns a split as the run took it, or another one as it is stored."""
    from trainer import dataset

    name, parts = settings.split, (*opened.train.shard_lengths, len(opened.val.ids))
    if name in ("train", "val") and model.examples != parts:
        raise ValueError(
            f"split {name} must be what the run cut from its own data set, got one of "
            f"{sum(parts)} examples in other shards than the run's {sum(model.examples)}; "
            "give another --split, or the data as they were by --data_dir"
        )
    taken = {"train": opened.train, "val": opened.val, "test": opened.test}
    return taken.get(name) or dataset.stored_split(opened, name)


def _check_target(
    path: str, picture: str, about: dict[str, Any], same: list[str]
) -> None:
    """Raises ValueError if a file is there that is of something else.

    Args:
        path: Of the file to be written.
        picture: Path of the picture that belongs to it.
        about: What it will say.
        same: Keys whose values must be those of the file that is there.
    """
    import tensorflow as tf

    from trainer import files

    there = files.read_json(path)
    for key in same if tf.io.gfile.exists(path) else ():
        theirs = there.get(key)
        if isinstance(theirs, str):  # An older one has the path as it was given.
            theirs = files.place(theirs)
        if key not in there or theirs != about[key]:
            raise ValueError(
                f"{path} must be of {key} {about[key]} to be written over, got one of "
                f"{there.get(key, 'another program')}; give another --output_dir"
            )
    if not there.get("picture") and tf.io.gfile.exists(picture):
        raise ValueError(
            f"{picture} must be of {path} to be written over, got one that it does "
            "not name; remove it, or give another --output_dir"
        )


def _evaluate(
    settings: Evaluation,
    model: "Trained",
    opened: "Dataset",
    split: "Split",
    path: str,
    picture: str,
    about: dict[str, Any],
) -> int:
    """Evaluates, writes the file and the picture, prints the table."""
    import numpy as np
    import tensorflow as tf
    from tqdm import tqdm

    from trainer import boundaries, files, metrics, pictures, scoring
    from trainer.worst import Worst

    names, size = list(opened.class_names), model.settings.image_size
    slide = settings.window == "slide"
    examples_at_once = min(settings.batch_size, len(split.ids))
    sides = {"model": size, "original": None}
    at = sides[settings.at] if settings.at in sides else int(settings.at)
    look = scoring.look(
        model.model,
        size,
        settings.batch_size if slide else examples_at_once,
        at=at,
        flip=settings.tta == "flip",
        slide=slide,
        overlap=settings.overlap,
    )
    confusion = np.zeros((len(names), len(names)), np.int64)
    boundary = np.zeros((len(names), 4), np.int64)
    worst = Worst(settings.worst, names, at or PANEL)
    examples = scoring.run(opened, split, look, size, examples_at_once, at=at)
    with tqdm(total=len(split.ids), unit="image", disable=None, leave=False) as bar:
        for scored in examples:
            confusion += scored.confusion
            boundary += scored.boundary
            worst.add(scored)
            bar.update()
    found = metrics.summary(confusion, names) | boundaries.summary(boundary, names)
    found["mean_dice"] = metrics.mean([found[f"dice/{one}"] for one in names])
    files.make_directory(os.path.dirname(path))
    drawn = worst.picture()
    if drawn is None and tf.io.gfile.exists(picture):
        tf.io.gfile.remove(picture)  # Of an earlier evaluation: `_ready` has looked.
    written = {
        **about,
        "metrics": found,
        "confusion": confusion.tolist(),
        "worst": worst.told(),
        "picture": None if drawn is None else picture,
    }
    files.write_json(path, written)
    if drawn is not None:  # Now that it is named: where this is killed, it is ours.
        files.make_directory(os.path.dirname(picture))
        files.write(picture, pictures.encode_png(drawn))
    of = f"{settings.at} size" if settings.at in sides else f"at {at} pixels a side"
    print(f"{settings.split}, {len(split.ids)} examples, {of}:")
    print(metrics.table(found, names))
    print(f"figures: {path}" + ("" if drawn is None else f"\nworst: {picture}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
