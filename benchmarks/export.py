"""Measures how an exported model differs from the run's own, and what LiteRT costs.

    python -m benchmarks.export --job_dir=RUN --images=DIR

The photographs go through `trainer.predict` and through the SavedModel, in batches of
several sizes; each pixel of each mask is compared. The test examples of the run go through
its model, the LiteRT file in float32 and the one in int8, at the model's size.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import machine

BATCHES = (1, 7, 16, 2, 24)  # In turns.
REPEATS = 3  # Of an export, to time it.


def chosen(images: str, count: int) -> dict[pathlib.Path, tuple[int, int]]:
    """Returns photographs of as many sizes as there are, each with its size."""
    from PIL import Image

    of_size: dict[tuple[int, int], list[pathlib.Path]] = {}
    for path in sorted(pathlib.Path(images).glob("*.jpg")):
        with Image.open(path) as picture:
            of_size.setdefault(picture.size, []).append(path)
    turns = itertools.zip_longest(*of_size.values())  # One of each size, then another.
    size_of = {path: size for size, paths in of_size.items() for path in paths}
    found = [path for turn in turns for path in turn if path is not None]
    return {path: size_of[path] for path in found[:count]}


def differing(job_dir: str, folder: str, images: str, count: int) -> dict:
    """Returns how many pixels of the masks of two ways differ.

    Args:
        job_dir: Of the run.
        folder: Of its exported model.
        images: Folder of photographs.
        count: Of them to take.
    """
    import tensorflow as tf
    from PIL import Image

    from trainer import predict

    sizes = chosen(images, count)
    paths = list(sizes)
    with tempfile.TemporaryDirectory() as scratch:
        flags = [f"--job_dir={job_dir}", f"--output_dir={scratch}", "--nooverlays"]
        assert predict.main([*flags, *map(str, paths)]) == 0
        served = tf.saved_model.load(folder).signatures["serving_default"]
        differ = pixels = first = 0
        for batch in itertools.cycle(BATCHES):
            some = paths[first : first + batch]
            files = tf.constant([path.read_bytes() for path in some])
            masks = served(image_bytes=files)["mask_bytes"].numpy() if some else []
            for path, mask in zip(some, masks, strict=True):
                ours = tf.io.decode_png(mask)[..., 0].numpy()
                with Image.open(pathlib.Path(scratch, f"{path.stem}.png")) as theirs:
                    differ += int((ours != np.asarray(theirs)).sum())
                pixels += ours.size
            first += batch
            if first >= len(paths):
                break
    return {
        "photographs": len(paths),
        "sizes": len(set(sizes.values())),
        "batch_sizes": BATCHES,
        "pixels": pixels,
        "pixels_that_differ": differ,
    }


def through(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function of a LiteRT file: (S, S, 3) uint8 -> ids (S, S)."""
    import tensorflow as tf

    with warnings.catch_warnings(action="ignore"):  # That it will move.
        lite = tf.lite.Interpreter(str(path))
    lite.allocate_tensors()
    [into], [out] = lite.get_input_details(), lite.get_output_details()

    def ids(image: np.ndarray) -> np.ndarray:
        lite.set_tensor(into["index"], image[np.newaxis])
        lite.invoke()
        return lite.get_tensor(out["index"])[0].argmax(-1)

    return ids


def examples(run: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields image and mask of each test example at the model's size."""
    from trainer import streams, trained
    from trainer.examples import Examples

    opened = trained.open_dataset(run.settings)
    test = opened.test
    assert test is not None, "the data set needs a test split"
    reader = Examples(test.files, test.file_lengths, None)
    size = run.settings.image_size
    with streams.iterator(
        lambda stop: streams.eval_batches(
            *(opened, test, reader), image_size=size, batch_size=1, stop=stop
        )
    ) as stream:
        for image, mask in stream:
            yield image[0].numpy(), mask[0].numpy()


def lite(job_dir: str, folder: pathlib.Path) -> dict:
    """Returns agreement, mean IoU and size of the LiteRT files, on test."""
    from trainer import inference, metrics, trained

    run = trained.load(job_dir)
    names = list(run.class_names)
    probabilities = inference.make_probabilities(run.model)
    ways = {
        "keras": lambda image: probabilities(image[np.newaxis])[0].numpy().argmax(-1),
        "model.tflite": through(folder / "model.tflite"),
        "model_int8.tflite": through(folder / "model_int8.tflite"),
    }
    confusions = {way: np.zeros((len(names),) * 2, np.int64) for way in ways}
    agree, pixels, count = dict.fromkeys(ways, 0), 0, 0
    for image, mask in examples(run):
        found = {}
        for way, ids in ways.items():
            found[way] = ids(image)
            confusions[way] += metrics.confusion_matrix(
                mask[np.newaxis], found[way][np.newaxis].astype(np.int32), len(names)
            ).numpy()
            agree[way] += int((found[way] == found["keras"]).sum())
        pixels, count = pixels + mask.size, count + 1
    return {
        way: {
            "mean_iou": metrics.summary(confusions[way], names)["mean_iou"],
            "agrees_with_keras": agree[way] / pixels,
            **({} if way == "keras" else {"bytes": (folder / way).stat().st_size}),
        }
        for way in ways
    } | {"test_examples": count}


def seconds(job_dir: str) -> dict[str, float]:
    """Returns what a run's end waits for its export, and computes: medians of several."""
    from trainer import checkpoint, exporting, trained

    run = trained.load(job_dir)
    taken = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as scratch:
            began, computed = time.monotonic(), time.process_time()
            arrays = checkpoint.values(checkpoint.named_variables(run.model))
            built = exporting.rebuilt(run.settings, len(run.class_names), arrays)
            model = dataclasses.replace(run, model=built)
            exporting.export(model, f"{scratch}/1", job_dir=job_dir, test=None)
            taken.append((time.monotonic() - began, time.process_time() - computed))
    waited, computed = (statistics.median(of) for of in zip(*taken, strict=True))
    return {"seconds": waited, "cpu_seconds": computed}


def main() -> None:
    """Measures, prints lines, writes export.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--job_dir", required=True, help="of a run, such as that of make train")
    add("--images", required=True, help="folder of photographs, .jpg")
    add("--count", type=int, default=50, help="photographs")
    args = parser.parse_args()
    from trainer import export

    with tempfile.TemporaryDirectory() as scratch:
        flags = [f"--job_dir={args.job_dir}", f"--output_dir={scratch}"]
        assert export.main([*flags, "--litert=both"]) == 0
        folder = pathlib.Path(scratch, "1")
        masks = differing(args.job_dir, str(folder), args.images, args.count)
        files = lite(args.job_dir, folder)
    took = seconds(args.job_dir)
    command = [sys.executable, "-m", "benchmarks.export"]
    command += [f"--job_dir={args.job_dir}", f"--images={args.images}"]
    names = {args.job_dir: "RUN", args.images: "DIR"}
    summary = {
        "machine": machine.facts(),
        "command": machine.shown(command, names),
        "masks": masks,
        "test": files,
        "export": took,
    }
    path = machine.RESULTS / "export.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        f"{masks['pixels_that_differ']} of {masks['pixels']} pixels differ in "
        f"{masks['photographs']} photographs of {masks['sizes']} sizes"
    )
    print("an export takes {seconds:.1f} s, {cpu_seconds:.1f} of a core".format(**took))
    for way in ("keras", "model.tflite", "model_int8.tflite"):
        found = files[way]
        print(
            f"{way}: mean IoU {found['mean_iou']:.4f}, "
            f"{found['agrees_with_keras']:.2%} of the pixels as keras"
        )


if __name__ == "__main__":
    main()
