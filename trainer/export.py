"""The model of a run -> what servers and phones load: a SavedModel, LiteRT files.

    python -m trainer.export --job_dir=runs/cars

Exit codes: 0 exported; 2 refused, nothing written; 1 stopped later, nothing left.
"""

import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from trainer import command, flags
from trainer.flags import setting

if TYPE_CHECKING:
    import threading

    import numpy as np
    import tensorflow as tf

    from trainer.dataset import Dataset

VERSION = "1"  # TensorFlow Serving looks for models in folders that are numbers.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What to export, and where to; checked when made."""

    # fmt: off
    job_dir: str | None = setting("Model", None, "Of the run whose model it is, local or gs://; needed.")
    checkpoint: str = setting("Model", "best", "best: the one that validation chose; latest: the newest.", choices=("best", "latest"))

    output_dir: str | None = setting("Output", None, "Where to write 1/saved_model.pb and what belongs to it, local or gs://; job_dir/export when absent.")
    precision: str = setting("Output", "run", "Arithmetic of the SavedModel: run, that of the run, in which it was validated; float32, for servers that are slow with half precision.", choices=("run", "float32"))
    litert: str = setting("Output", "none", "Write LiteRT files (.tflite) too: float, in float32; int8, a quarter of its size.", choices=("none", "float", "int8", "both"))

    data_dir: str | None = setting("int8", None, "TFDS directory that calibrates int8, local or gs://; that of the run when absent.")
    calibration_examples: int = setting("int8", 100, "Examples of the train split from which the range of each tensor is taken.", low=1)
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        if self.job_dir is None:
            raise ValueError("job_dir must be given: --job_dir=...")
        if self.data_dir is not None and self.litert not in ("int8", "both"):
            raise ValueError(
                f"data_dir must be given with litert int8 or both, got {self.litert}"
            )
        count = self.calibration_examples
        if count != Export.calibration_examples and self.litert not in ("int8", "both"):
            raise ValueError(
                "calibration_examples must be given with litert int8 or both, got "
                f"{count} with {self.litert}; add --litert=int8, or leave it out"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Exports a model; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    about = "Exports a trained model: a SavedModel to serve, LiteRT files if asked for."
    return command.run(about, Export, args, _ready, whole=True)


def _ready(settings: Export) -> Callable[[], int]:
    """Returns the work, all that could refuse it having been looked at."""
    from trainer import bucket, exporting, files, placing, run_files, trained

    assert settings.job_dir
    parent = settings.output_dir or os.path.join(settings.job_dir, "export")
    target = os.path.join(parent, VERSION)
    if files.remote(target):
        bucket.check("output_dir", target, bucket.WRITE)
    run_files.check_directory("output_dir", parent)
    placing.check("output_dir", target)
    model = trained.load(settings.job_dir, settings.checkpoint)
    lite = {
        "none": (),
        "float": (placing.LITERT,),
        "int8": (placing.LITERT_INT8,),
        "both": (placing.LITERT, placing.LITERT_INT8),
    }[settings.litert]
    images = None
    if placing.LITERT_INT8 in lite:
        run = model.settings
        if settings.data_dir is not None:
            run = dataclasses.replace(run, data_dir=settings.data_dir, try_gcs=False)
        opened = trained.open_dataset(run)
        images = functools.partial(
            calibration, opened, run.image_size, settings.calibration_examples
        )
    result = run_files.read_result(settings.job_dir)
    judged = result.get("best", {}).get("step") == model.step

    def work() -> int:
        exporting.export(
            model,
            target,
            job_dir=settings.job_dir or "",
            test=result["test"] if judged else None,
            precision=None if settings.precision == "run" else settings.precision,
            lite=lite,
            images=images,
        )
        print(f"{target}: the model of step {model.step}")
        # It takes no relative path.
        base = shlex.quote(parent if files.remote(parent) else os.path.abspath(parent))
        print(f"  serve it: tensorflow_model_server --model_base_path={base}")
        return 0

    return work


def calibration(
    opened: "Dataset", image_size: int, count: int
) -> "Iterator[np.ndarray]":
    """Yields images (S, S, 3) uint8 from all over the train split, as they are stored.

    Args:
        opened: The data set.
        image_size: S, pixels.
        count: How many, at most.
    """
    import numpy as np

    from trainer import examples, streams

    ids = opened.train.ids
    some = np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int))
    split = dataclasses.replace(opened.train, ids=ids[some])
    reader = examples.Examples(split.files, split.file_lengths, None)

    def batches(stop: "threading.Event") -> "tf.data.Dataset":
        return streams.eval_batches(
            *(opened, split, reader), image_size=image_size, batch_size=1, stop=stop
        )

    with streams.iterator(batches) as stream:
        for image, _ in stream:
            yield image[0].numpy()


if __name__ == "__main__":
    command.process(main)
