"""Measures what grows when a run does: with its data, its images, its steps.

    python -m benchmarks.growth
    python -m benchmarks.growth --only steps

A tiny model, so that what is not the model shows. (a) The same number of examples seen,
of data sets of 1, 2, 4 and 8 times the size, in turns; steps/s at four image sizes.
(b) One pass over many tiny examples, streamed (`--cache=none`), its memory sampled.
(c) Many steps: memory, threads, open files, step time and what is written, sampled.
Neither memory, threads, files nor step time may grow once a run is under way.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterable

from benchmarks import machine, watch
from benchmarks.side_by_side import measured

TINY = [
    *("--encoder_alpha=0.35", "--encoder_weights=none", "--noexport"),
    *("--limit_eval_examples=8", "--num_pictures=1", "--checkpoint_every_seconds=60"),
]
TIMES = (1, 2, 4, 8)
IMAGE_SIZES = (64, 128, 256, 512)
STEADY_AFTER = 2000  # Steps; caches are full, pools have their size.
# What still counts as flat: of what is there after STEADY_AFTER steps, to the end.
FLAT = {
    "resident_bytes": 0.03,
    "threads": 0.05,
    "open_files": 0.05,
    "seconds_per_step": 0.05,
}
FLAT_COST = 0.05  # Of seconds per example, over those of the smallest data set.
KEPT = 60  # Samples of a run that the result holds.
FEWEST = 10  # Looks, and rows, that tell whether a run grows.


def command(job_dir: pathlib.Path, *flags: str) -> list[str]:
    """Returns the command of a run of the tiny model."""
    return [sys.executable, "-m", "trainer.task", f"--job_dir={job_dir}", *TINY, *flags]


def run(scratch: pathlib.Path, *flags: str) -> dict:
    """Returns what a run tells of itself."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        job_dir = pathlib.Path(name) / "job"
        measured(command(job_dir, *flags), pathlib.Path(name) / "log")
        result = json.loads((job_dir / "result.json").read_text(encoding="utf-8"))
    return {
        "seconds_per_example": 1 / result["train_images_per_second"],
        "peak_memory_bytes": result["peak_memory_bytes"],
    }


# ---------------------------------------------------------------------------
# More data, larger images


def with_more_data(scratch: pathlib.Path, examples: int, repeats: int) -> dict:
    """Returns seconds per example and memory with 1, 2, 4 and 8 times the data.

    All see as many examples: of half the data, in twice the epochs.

    Args:
        scratch: A folder.
        examples: Of the smallest data set.
        repeats: Runs of each, in turns.
    """
    from benchmarks import repeated
    from trainer import dataset

    sample = pathlib.Path(dataset.SAMPLE_DIR, "oxford_iiit_pet")
    [source] = sample.iterdir()
    for times in TIMES:
        counts = {"train": times * examples, "test": 8}
        repeated.write(source, scratch / f"times-{times}", counts)
    runs: dict[int, list[dict]] = {times: [] for times in TIMES}
    for _ in range(repeats):
        for times, found in runs.items():
            data_dir = f"--data_dir={scratch / f'times-{times}'}"
            epochs = f"--epochs={max(TIMES) // times}"
            rest = ("--cache=none", "--image_size=32", "--batch_size=16")
            found.append(
                run(scratch, data_dir, epochs, "--eval_every_steps=100000", *rest)
            )
            print(f"{times} times the data: {found[-1]}", flush=True)
    return {"examples": examples, "runs": runs, "over_the_least": over_the_least(runs)}


def over_the_least(runs: dict[int, list[dict]]) -> dict[int, dict[str, float]]:
    """Returns seconds per example and memory over those of the least, run by run."""
    least = runs[min(runs)]
    return {
        times: {
            name: statistics.median(
                a[name] / b[name] for a, b in zip(found, least, strict=True)
            )
            for name in ("seconds_per_example", "peak_memory_bytes")
        }
        for times, found in runs.items()
    }


def with_larger_images(scratch: pathlib.Path, steps: int, batch_size: int) -> dict:
    """Returns steps/s and memory at each image size."""
    found = {}
    for size in IMAGE_SIZES:
        flags = [f"--image_size={size}", f"--batch_size={batch_size}"]
        told = run(scratch, *flags, f"--total_steps={steps}")
        rate = 1 / (told["seconds_per_example"] * batch_size)
        memory = told["peak_memory_bytes"]
        found[size] = {"steps_per_second": rate, "peak_memory_bytes": memory}
        print(f"{size} px: {rate:.2f} steps/s, {memory / 1e9:.2f} GB", flush=True)
    return found


# ---------------------------------------------------------------------------
# A long stream, many steps


def write_tiny(data_dir: pathlib.Path, count: int) -> None:
    """Writes a data set of many examples of 32 pixels a side, of 100 different ones."""
    import numpy as np
    import tensorflow_datasets as tfds

    from benchmarks import repeated
    from trainer import shards

    rng = np.random.default_rng(0)
    feature = tfds.features
    features = feature.FeaturesDict(
        {
            "image": feature.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "mask": feature.Image(shape=(None, None, 1), encoding_format="png"),
        }
    )
    records = []
    for _ in range(100):
        image = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        mask = rng.integers(0, 2, (32, 32, 1)).astype(np.uint8)
        example = features.encode_example({"image": image, "mask": mask})
        records.append(features.serialize_example(example))
    endless = itertools.cycle(records)
    parts = [itertools.islice(endless, n) for n in repeated.dealt(count, 16)]
    splits: dict[str, list[Iterable[bytes]]] = {
        "train": [*parts],
        "test": [records[:8]],
    }
    shards.write_dataset(data_dir / "tiny" / "1.0.0", "tiny", splits, features)


def sampled(
    scratch: pathlib.Path, name: str, flags: list[str], steps: int, every: float
) -> dict:
    """Returns what a run was seen to have, and how it grew once it was under way.

    Args:
        scratch: A folder.
        name: Of the run.
        flags: Of the run.
        steps: That it takes.
        every: Seconds between two looks.
    """
    job_dir = scratch / name
    log = scratch / f"{name}.log"
    all_flags = [*flags, f"--total_steps={steps}"]
    samples = watch.watched(command(job_dir, *all_flags), job_dir, log, every)
    rows = (job_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    batch_size = json.loads((job_dir / "config.json").read_text())["global_batch_size"]
    first = min(STEADY_AFTER, steps // 4)
    timed = [
        {"step": row["step"], "seconds_per_step": batch_size / row["images_per_second"]}
        for row in map(json.loads, rows)
        if row["kind"] == "train" and row.get("images_per_second")
    ]
    seen = watch.training(samples, first, steps)
    rows_seen = watch.training(timed, first, steps + 1)
    if min(len(seen), len(rows_seen)) < FEWEST:
        sys.exit(
            f"{name}: {FEWEST} looks and rows after step {first} tell what grows, got "
            f"{len(seen)} and {len(rows_seen)}; take more steps"
        )
    found = growth(seen, steps - first) | growth(rows_seen, steps - first)
    for what, told in found.items():
        print("{0}: {at_first:.4g}, {slope:+.4g} in 1,000 steps".format(what, **told))
    return {
        "steps": steps,
        "steady_after": first,
        "grew": found,
        "samples": thinned(samples),
        "timed": thinned(timed),
    }


def thinned(samples: list[dict]) -> list[dict]:
    """Returns up to `KEPT` of the samples, enough to draw them."""
    return samples[:: -(-len(samples) // KEPT) or 1]


def growth(samples: list[dict], steps: int) -> dict[str, dict]:
    """Returns for each value its median, slope, and whether it is flat.

    Args:
        samples: Of the time in which nothing is to grow.
        steps: How many they are of.
    """
    found = {}
    for name in samples[0] if samples else ():
        if name in ("step", "seconds"):
            continue
        slope = watch.slope(samples, name)
        level = statistics.median(sample[name] for sample in samples)
        found[name] = {"at_first": samples[0][name], "median": level, "slope": slope}
        if name in FLAT:
            found[name]["flat"] = slope * steps / 1000 <= FLAT[name] * level
    return found


def main() -> None:
    """Measures all, prints lines, writes growth.json; exit code 1 where something grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--examples", type=int, default=100_000, help="of the long stream")
    add("--steps", type=int, default=20_000, help="of the long run")
    add("--least", type=int, default=1600, help="examples of the smallest data set")
    add("--repeats", type=int, default=3, help="runs with each data set, in turns")
    add("--sizes_steps", type=int, default=24, help="at each image size")
    add("--every_seconds", type=float, default=2.0, help="between two looks")
    parts = ["data", "sizes", "stream", "steps"]
    about = "parts to take anew; of the others the file's figures stay"
    add("--only", nargs="+", choices=parts, default=parts, help=about)
    args = parser.parse_args()
    path = machine.RESULTS / "growth.json"
    found: dict[str, dict] = {}
    if set(args.only) < set(parts):
        try:
            kept = machine.kept(path)
        except ValueError as error:
            parser.error(str(error))
        found = {part: told for part, told in kept.items() if part in parts}
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        if "data" in args.only:
            found["data"] = with_more_data(scratch, args.least, args.repeats)
        if "sizes" in args.only:
            found["sizes"] = with_larger_images(scratch, args.sizes_steps, 4)
        small = ["--image_size=32", "--log_every_steps=100", "--eval_every_steps=1000"]
        if "stream" in args.only:
            write_tiny(scratch / "tiny", args.examples)
            flags = ["--dataset=tiny", f"--data_dir={scratch / 'tiny'}"]
            flags += ["--mask_feature=mask", "--class_names=a,b", "--cache=none"]
            flags += ["--batch_size=16", *small]
            steps = int(0.9 * args.examples) // 16  # A tenth is for validation.
            found["stream"] = sampled(
                scratch, "stream", flags, steps, args.every_seconds
            )
        if "steps" in args.only:
            flags = ["--batch_size=4", *small]
            found["steps"] = sampled(
                scratch, "steps", flags, args.steps, args.every_seconds
            )
    grows = growing(found)
    for line in grows:
        print(f"grows: {line}")
    command = [sys.executable, "-m", "benchmarks.growth", *sys.argv[1:]]
    for part in args.only:
        found[part]["command"] = machine.shown(command, {})
    summary = {"machine": machine.facts(), "grows": grows, **found}
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(grows))


def growing(found: dict[str, dict]) -> list[str]:
    """Returns what grows and should not, in words."""
    lines = []
    for times, ratio in found.get("data", {}).get("over_the_least", {}).items():
        cost = ratio["seconds_per_example"]
        if cost > 1 + FLAT_COST:
            lines.append(f"seconds per example with {times} times the data: {cost:.2f}")
    for part in ("stream", "steps"):
        for name, told in found.get(part, {}).get("grew", {}).items():
            if not told.get("flat", True):
                lines.append(f"{part}: {name} by {told['slope']:.4g} in 1,000 steps")
    return lines


if __name__ == "__main__":
    main()
