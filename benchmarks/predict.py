"""Measures how long a model waits for photographs to be read and masks to be written.

    python -m benchmarks.predict --job_dir=RUN --images=DIR

The same photographs, in turns: through all that `trainer.predict` does with them (read,
decoded, resized, looked at, resized again, masks and overlays written), and through the
bare model, their small copies in memory. Both look at the same batches, traced before.
The run should have learned something: ragged masks take longer to write.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import machine
from trainer.command import set_up_tensorflow


def through_all(settings: Any, model: Any, look: Any, found: Sequence) -> float:
    """Returns photographs/s of the command's inner path."""
    from trainer import pictures, pipeline, predict

    def skip(photograph: Any, why: str) -> None:
        raise ValueError(f"{photograph.path} {why}; a benchmark needs sound ones")

    colours = pictures.palette(len(model.class_names))
    write = functools.partial(predict.write, settings, colours)
    began = time.monotonic()
    size, batch_size = model.settings.image_size, settings.batch_size
    done = sum(1 for _ in pipeline.run(found, size, batch_size, look, write, skip))
    return done / (time.monotonic() - began)


def through_model(look: Any, reads: Sequence, batch_size: int) -> float:
    """Returns photographs/s of the model alone, in batches."""
    began = time.monotonic()
    for first in range(0, len(reads), batch_size):
        seen = list(look(reads[first : first + batch_size]))
    seen[-1].numpy()  # An accelerator has finished, too.
    return len(reads) / (time.monotonic() - began)


def measure(job_dir: str, images: str, repeats: int, scratch: str) -> dict:
    """Returns photographs/s of both, each time, and the ratio.

    Args:
        job_dir: Of the run whose model it is.
        images: Folder of the photographs.
        repeats: How often each is measured.
        scratch: Folder to write masks to.
    """
    from trainer import files, photographs, pipeline, predict, trained

    settings = predict.Prediction(job_dir=job_dir, output_dir=scratch, images=(images,))
    model = trained.load(job_dir)
    found = photographs.find([images], scratch)
    for folder in {pathlib.Path(scratch, one.name).parent for one in found}:
        files.make_directory(str(folder))
    look = predict.look(settings, model, settings.batch_size)
    reads: list = []
    # The first pass is not counted: it traces, and brings the files into memory.
    for _ in pipeline.run(
        *(found, model.settings.image_size, settings.batch_size, look),
        lambda read, _: reads.append(read),
        lambda *_: None,
    ):
        pass
    rates: dict[str, list[float]] = {"predict": [], "model": []}
    for _ in range(repeats):
        rates["predict"].append(through_all(settings, model, look, found))
        rates["model"].append(through_model(look, reads, settings.batch_size))
    pairs = zip(rates["predict"], rates["model"], strict=True)
    return {
        "images": len(reads),
        "megapixels": round(statistics.mean(r.image.size / 3e6 for r in reads), 3),
        "batch_size": settings.batch_size,
        "images_per_second": rates,
        "predict_over_model": statistics.median(ours / bare for ours, bare in pairs),
    }


def main() -> None:
    """Measures, prints a line, writes predict.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--job_dir", required=True, help="of a run, such as that of make train")
    add("--images", required=True, help="folder of photographs")
    add("--repeats", type=int, default=5, help="of each, in turns")
    args = parser.parse_args()
    set_up_tensorflow()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(args.job_dir, args.images, args.repeats, scratch)
    command = [sys.executable, "-m", "benchmarks.predict"]
    command += [f"--job_dir={args.job_dir}", f"--images={args.images}"]
    names = {args.job_dir: "RUN", args.images: "DIR"}
    summary = {
        "machine": machine.facts(),
        "command": machine.shown(command, names),
        **found,
    }
    path = machine.RESULTS / "predict.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    ours, bare = (statistics.median(x) for x in found["images_per_second"].values())
    print(
        f"{ours:.1f} photographs/s, the model alone {bare:.1f}: "
        f"{found['predict_over_model']:.2f} of its speed"
    )


if __name__ == "__main__":
    main()
