"""Photographs -> their masks, by the model of a run.

    python -m trainer.predict --job_dir=runs/cars --output_dir=masks photos

Exit codes: 0 all predicted; 1 some could not be read or written, or stopped on the way;
2 refused, nothing written. Letters: H and W a photograph's own height and width, C
classes.
"""

import dataclasses
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trainer import command, flags, terminal
from trainer.flags import setting

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from trainer.photographs import Photograph
    from trainer.pipeline import Look, Read
    from trainer.trained import Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What to predict, and how; checked when made."""

    # fmt: off
    job_dir: str | None = setting("Model", None, "Of the run whose model it is, local or gs://; needed.")
    checkpoint: str = setting("Model", "best", "best: the one that validation chose; latest: the newest.", choices=("best", "latest"))

    images: tuple[str, ...] | None = setting("Pictures", None, "Files, folders and patterns, local or gs://, separated by commas, or as arguments without a flag; needed.")
    output_dir: str | None = setting("Pictures", None, "Where to write NAME.png of class ids, local or gs://; needed.")
    overlays: bool = setting("Pictures", True, "Write NAME_overlay.jpg too, the photograph under the classes' colours.")
    probabilities: bool = setting("Pictures", False, "Write NAME.npz too: probabilities, (height, width, classes) float16.")

    window: str = setting("Looking", "whole", "whole: all of a photograph at the model's size; slide: window by window, unscaled.", choices=("whole", "slide"))
    overlap: float = setting("Looking", 0.5, "Share of a window that its neighbour covers too, at least; with --window=slide.", low=0, high=0.9)
    tta: str = setting("Looking", "none", "flip: the mean over each image and its mirror image.", choices=("none", "flip"))
    batch_size: int = setting("Looking", 16, "Images, or windows, at once.", low=1)
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        for name in ("job_dir", "output_dir"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be given: --{name}=...")
        if not self.images:
            raise ValueError("images must be given: files, folders or patterns")
        if not all(self.images):
            raise ValueError("images must not be empty names; leave them out instead")
        if self.window == "whole" and self.overlap != Prediction.overlap:
            raise ValueError(
                f"overlap must be given with --window=slide, got {self.overlap} with "
                "whole; add --window=slide, or leave it out"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts the masks of photographs; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    about = "Predicts the masks of photographs with a trained model."
    return command.run(about, Prediction, args, _ready, rest="images")


def _ready(settings: Prediction) -> Callable[[], int]:
    """Returns the work, all that could refuse it having been looked at."""
    from trainer import (
        bucket,
        contract,
        files,
        index,
        photographs,
        pictures,
        run_files,
        trained,
    )

    assert settings.job_dir and settings.output_dir and settings.images
    output_dir = settings.output_dir
    if files.remote(output_dir):
        bucket.check("output_dir", output_dir, bucket.WRITE)
    found = photographs.find(settings.images, output_dir)
    folders = sorted({os.path.dirname(one.name) for one in found} | {""})
    for folder in folders:
        run_files.check_directory("output_dir", os.path.join(output_dir, folder))
    endings = [index.MASK, *([index.OVERLAY] if settings.overlays else [])]
    endings += [index.PROBABILITIES] if settings.probabilities else []
    model = trained.load(settings.job_dir, settings.checkpoint)
    # Last, so that another prediction there hardly comes between reading and writing it.
    earlier = photographs.check_targets(found, output_dir, endings)
    colours = pictures.palette(len(model.class_names))
    classes = contract.classes(model.class_names)
    if earlier and earlier["classes"] != classes:
        raise ValueError(
            "output_dir must be new or hold masks of the model's classes, got "
            f"{output_dir} with those of others; give another --output_dir"
        )
    about = {"classes": classes, "checkpoint": model.checkpoint, "step": model.step}
    paths = {one.name: files.place(one.path) for one in found}

    def work() -> int:
        for folder in folders:
            files.make_directory(os.path.join(output_dir, folder))
        index.write(output_dir, earlier, about, paths, endings)
        left = set(paths)
        try:
            return _predict(settings, model, found, colours, left)
        finally:
            if left:
                index.take_back(output_dir, earlier, left)

    return work


def look(settings: Prediction, model: "Trained", batch_size: int) -> "Look":
    """Returns how photographs are looked at.

    Args:
        settings: Whole or window by window, mirrored or not.
        model: That looks.
        batch_size: Images or windows at once.
    """
    from trainer import inference, pipeline

    probabilities = inference.make_probabilities(
        model.model, flip=settings.tta == "flip"
    )
    if settings.window == "whole":
        return pipeline.whole(probabilities, batch_size)
    size = model.settings.image_size
    return pipeline.slide(probabilities, size, settings.overlap, batch_size)


def _predict(
    settings: Prediction,
    model: "Trained",
    found: "list[Photograph]",
    colours: "np.ndarray",
    left: set[str],
) -> int:
    """Writes all masks, takes their names out of `left`; returns the exit code."""
    import numpy as np
    from absl import logging
    from tqdm import tqdm

    from trainer import pipeline

    masks, pixels = 0, np.zeros(len(colours), np.int64)
    batch_size = settings.batch_size
    if settings.window == "whole":
        batch_size = min(batch_size, len(found))
    with tqdm(total=len(found), unit="image", disable=None, leave=False) as bar:

        def skip(one: "Photograph", why: str) -> None:
            bar.update()
            logging.warning("skipped %s: %s", one.path, why)

        for name, counted in pipeline.run(
            found,
            model.settings.image_size,
            batch_size,
            look(settings, model, batch_size),
            functools.partial(write, settings, colours),
            skip,
            pipeline.WAITING if settings.window == "slide" else None,
        ):
            masks += 1
            pixels += counted
            left.remove(name)
            bar.update()
    print(f"{masks} {'mask' if masks == 1 else 'masks'} in {settings.output_dir}")
    for id, name in enumerate(model.class_names if masks else ()):
        print(f"  class {id} {name}: {pixels[id] / pixels.sum():.1%} of the pixels")
    if left:
        reason = f"{len(left)} of {len(found)} images could not be read or written"
        return terminal.stopped(command.FAILED, f"{reason}, named above")
    return 0


def write(
    settings: Prediction, colours: "np.ndarray", read: "Read", seen: "tf.Tensor"
) -> "tuple[str, np.ndarray]":
    """Writes what is made of one photograph; returns its name, and each class's pixels.

    Args:
        settings: What is to be written, and where.
        colours: (C, 3) uint8.
        read: The photograph.
        seen: (?, ?, C) float32, its probabilities.

    Raises:
        pipeline.Unwritable: If nothing of that name can be written.
    """
    import numpy as np
    import tensorflow as tf

    from trainer import files, index, masks, overlay, pipeline, resizing

    ids = pipeline.ids_of(read, seen)
    mask = overlay.indexed(ids, colours)
    path = os.path.join(settings.output_dir or "", read.photograph.name)
    made = {}
    if settings.overlays:
        made[index.OVERLAY] = overlay.jpeg(overlay.blend(read.image, mask))
    if settings.probabilities:
        buffer = io.BytesIO()
        with tf.device("CPU"):
            own = resizing.probabilities(seen, *read.image.shape[:2])
        half = own.numpy().astype(np.float16)
        np.savez_compressed(buffer, probabilities=half)
        made[index.PROBABILITIES] = buffer.getvalue()
    made[index.MASK] = masks.png(mask)
    try:
        # The longest name first: where it is too long, nothing of this one is written.
        for ending, content in made.items():
            files.write(path + ending, content)
    # Its name. A full disk, or a bucket that does not answer, is none of this one's.
    except tf.errors.InvalidArgumentError as error:
        raise pipeline.Unwritable(terminal.one_line(error)) from None
    return read.photograph.name, np.bincount(ids.ravel(), minlength=len(colours))


if __name__ == "__main__":
    sys.exit(main())
