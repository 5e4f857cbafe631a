"""Measures the input pipeline alone: photographs of full size from TFRecords, images/s.

    python -m benchmarks.input --folder=DIR

The limit is a bare loop of TensorFlow's that reads, decodes and resizes the same
examples to the same pixels over all cores, and does nothing else. Ours takes turns with
it, each from rest, so that none pays for what fills the buffers of the one before:
reading and decoding anew (`--cache=none`), from the cache, and from the cache with every
augmentation. What a training step takes is the most of ours in `results/step.json`, or
measured where that is not of this machine.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import machine
from trainer.command import set_up_tensorflow

NAME = "photographs"
BATCH_SIZE = 64
IMAGE_SIZE = 128
WARM_BATCHES = 6  # Of each turn, not counted: more than any stream has lie ready.
REST_SECONDS = 0.2  # Without work, for all streams to be taken to be at rest.
GOAL_OF_LIMIT = 0.8
GOAL_OVER_STEP = 10.0
AUGMENTATION: dict[str, Any] = dict(
    flip=True,
    crop_scale_min=0.5,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
)
OURS = {  # Cache, augmentation.
    "cold": ("none", None),
    "cached": ("memory", None),
    "augmented": ("memory", AUGMENTATION),
}


def prepare(folder: pathlib.Path, data_dir: pathlib.Path, examples: int) -> None:
    """Makes the data set: of the folder by trainer.prepare, then each several times.

    A hundred photographs would be over before a turn is, and their four files would be
    opened so often that opening is what is measured.
    """
    from benchmarks import repeated

    with tempfile.TemporaryDirectory(dir=data_dir) as once:
        command = [sys.executable, "-m", "trainer.prepare", f"--name={NAME}"]
        command += [f"--images={folder / 'images'}", f"--masks={folder / 'masks'}"]
        command += ["--class_names=pet,background,border", "--mask_offset=-1"]
        command += ["--test_fraction=0", f"--data_dir={once}"]
        subprocess.run(command, check=True, cwd=machine.REPOSITORY)
        [source] = pathlib.Path(once, NAME).iterdir()
        repeated.write(source, data_dir, {"train": examples})


def limit(files: list[str]) -> Any:
    """Returns the batches of the bare loop, for ever."""
    import tensorflow as tf

    from trainer import resizing

    feature = tf.io.FixedLenFeature((), tf.string)

    def load(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        stored = {"image": feature, "mask": feature}
        example = tf.io.parse_single_example(record, stored)
        image = tf.io.decode_jpeg(example["image"], channels=3)
        mask = tf.io.decode_png(example["mask"], channels=1)
        return resizing.image(image, IMAGE_SIZE), resizing.mask(mask, IMAGE_SIZE)

    ds = tf.data.TFRecordDataset(files).repeat().map(load, tf.data.AUTOTUNE)
    return ds.batch(BATCH_SIZE, drop_remainder=True).prefetch(2)


def rest() -> None:
    """Waits until all streams are at rest: their buffers full, no core at work."""
    used, before = time.process_time(), -1.0
    while used - before > 0.1 * REST_SECONDS:
        before = used
        time.sleep(REST_SECONDS)
        used = time.process_time()


def turn(batches: Iterator, count: int) -> float:
    """Returns images/s of the next batches, from rest, those made ready not counted."""
    rest()
    for _ in range(WARM_BATCHES):
        next(batches)
    began = time.monotonic()
    for _ in range(count):
        next(batches)
    return count * BATCH_SIZE / (time.monotonic() - began)


def measure(data_dir: pathlib.Path, rounds: int, batches: int) -> dict[str, list]:
    """Returns images/s of the limit and of ours, of each round.

    Args:
        data_dir: Where the data set is.
        rounds: Turns of each.
        batches: Of a turn that decodes; the others take ten times as many.
    """
    from trainer import data, dataset, streams

    opened = dataset.open_dataset(NAME, data_dir=str(data_dir), val_fraction=0.01)
    order = dict(image_size=IMAGE_SIZE, batch_size=BATCH_SIZE, seed=0, start=0)
    with contextlib.ExitStack() as open_streams:
        sources = {"limit": iter(limit(list(opened.train.files)))}
        for kind, (cache, augmentation) in OURS.items():
            size = data.train_size(IMAGE_SIZE, augmentation)
            readers = data.examples_of(opened, IMAGE_SIZE, cache, train_size=size)
            examples = readers["train"]

            def stream(stop, examples=examples, augmentation=augmentation):
                return streams.train_batches(
                    opened,
                    examples,
                    window=4096,
                    augmentation=augmentation,
                    stop=stop,
                    **order,
                )

            sources[kind] = open_streams.enter_context(streams.iterator(stream))
        counts = {
            kind: batches if kind in ("limit", "cold") else 10 * batches
            for kind in sources
        }
        rates: dict[str, list[float]] = {kind: [] for kind in sources}
        passes = -(-len(opened.train.ids) // BATCH_SIZE)
        for found in sources.values():  # The first pass fills the caches.
            turn(found, max(passes, batches))
        for number in range(rounds):
            for kind, found in sources.items():
                rates[kind].append(turn(found, counts[kind]))
            print(f"round {number + 1} of {rounds}", flush=True)
    return rates


def step_rate(path: pathlib.Path) -> float:
    """Returns images/s of our fastest training step: kept by benchmarks.step, or measured.

    Args:
        path: The file that benchmarks.step writes; passed over if of another machine or
            of steps of other images.
    """
    with contextlib.suppress(ValueError):
        kept = machine.kept(path)
        settings = kept["settings"]
        if (settings["batch_size"], settings["image_size"]) == (BATCH_SIZE, IMAGE_SIZE):
            return kept_rate(kept)
    from benchmarks import step_tensorflow

    batch = step_tensorflow.batch(BATCH_SIZE, IMAGE_SIZE)
    rates = []
    for policy in ("float32", "mixed_bfloat16"):
        turn = step_tensorflow.ours(False, policy, *batch)
        turn(3)  # The first ones trace, and take memory.
        rates += [5 * BATCH_SIZE / turn(5)[0] for _ in range(3)]
    return max(rates)


def kept_rate(step: dict) -> float:
    """Returns images/s of the fastest of our own steps in step.json."""
    ours = [case for case in step["cases"].values() if case["side"] == "ours"]
    return max(case["images_per_second"] for case in ours)


def compare(rates: dict[str, list[float]], step: float) -> dict:
    """Returns the medians of the rounds, over the limit of the same round, over a step.

    Args:
        rates: Images/s of each round, the limit's among them.
        step: Images/s of a training step.
    """
    over_limit = {
        kind: statistics.median(
            mine / bare for mine, bare in zip(rates[kind], rates["limit"], strict=True)
        )
        for kind in OURS
    }
    medians = {kind: statistics.median(mine) for kind, mine in rates.items()}
    return {
        "images_per_second": medians,
        "over_limit": over_limit,
        "step_images_per_second": step,
        "augmented_over_step": medians["augmented"] / step,
        "goals_met": {
            "cold": over_limit["cold"] >= GOAL_OF_LIMIT,
            "augmented": medians["augmented"] >= GOAL_OVER_STEP * step,
        },
    }


def main() -> None:
    """Measures, prints a line each, writes input.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    about = "with the folders images and masks, the latter trimaps of ids 1, 2, 3"
    add("--folder", type=pathlib.Path, required=True, help=about)
    add("--data_dir", type=pathlib.Path, help="for the data set; temporary when absent")
    add("--examples", type=int, default=1000, help="of the data set")
    add("--rounds", type=int, default=7, help="turns of each")
    add("--batches", type=int, default=24, help="of a turn, ten times for the cache's")
    args = parser.parse_args()
    set_up_tensorflow()
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = (args.data_dir or pathlib.Path(scratch)).absolute()
        data_dir.mkdir(parents=True, exist_ok=True)
        if not (data_dir / NAME).exists():
            prepare(args.folder.absolute(), data_dir, args.examples)
        rates = measure(data_dir, args.rounds, args.batches)
    found = compare(rates, step_rate(machine.RESULTS / "step.json"))
    names = {str(args.folder): "DIR", str(args.data_dir): "DATA"}
    command = [sys.executable, "-m", "benchmarks.input", *sys.argv[1:]]
    summary = {
        "machine": machine.facts(),
        "command": machine.shown(command, names),
        "batch_size": BATCH_SIZE,
        "image_size": IMAGE_SIZE,
        "examples": args.examples,
        **found,
        "rounds": rates,
    }
    path = machine.RESULTS / "input.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    rate = found["images_per_second"]
    print(f"the limit: {rate['limit']:.0f} images/s")
    for kind, ratio in found["over_limit"].items():
        print(f"{kind}: {rate[kind]:.0f} images/s, {ratio:.2f} of the limit")
    print(
        f"a training step takes {found['step_images_per_second']:.0f} images/s: "
        f"augmented from the cache is {found['augmented_over_step']:.1f} times as fast"
    )


if __name__ == "__main__":
    main()
