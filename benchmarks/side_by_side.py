"""Runs the tutorial and our job one after the other and lays the figures side by side.

    python -m benchmarks.side_by_side --data_dir=DIR --epochs=20
    python -m benchmarks.side_by_side --data_dir=DIR --epochs=2 --repeats=5 \
        --limit_train_examples=1280 --limit_eval_examples=256 --name=speed

Both have the tutorial's settings (frozen encoder, Adam 1e-3, flips), the same data and
the same cores, each in a process of its own. Several short repeats, taken in turns, make
speeds comparable on a noisy machine: the ratio is the median over the pairs. Flags after
`--` go to our job alone. Nothing here imports TensorFlow: the operating system counts a
parent's memory at the start of its child.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import machine

# Row of the table: key, heading, digits. The two report them alike; the last two are
# taken from outside.
ROWS = [
    ("mean_iou", "test mean IoU", 4),
    ("pixel_accuracy", "test pixel accuracy", 4),
    ("iou/pet", "test IoU of pet", 4),
    ("iou/background", "test IoU of background", 4),
    ("iou/border", "test IoU of border", 4),
    ("images_per_second", "images/s, median", 1),
    ("train_images_per_second", "images/s, all steps", 1),
    ("seconds_to_first_step", "seconds to the first step", 1),
    ("total_seconds", "seconds in all", 1),
    ("peak_memory_gib", "peak memory, GiB", 2),
]
SIDES = ("tutorial", "job")
# Of our result.json; the rest has paths of this machine in it.
KEPT = (
    "step",
    "epoch",
    "train_images_per_second",
    "seconds_to_first_step",
    "train_seconds",
    "peak_memory_bytes",
)


def measured(command: list[str], log: pathlib.Path) -> dict[str, float]:
    """Returns wall time and peak memory of a command, as the operating system saw them.

    Args:
        command: The program and its arguments.
        log: File that gets what it prints.

    Raises:
        RuntimeError: If the command fails.
    """
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=machine.REPOSITORY
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(
            f"exit code {process.returncode}: {' '.join(command)}\n{tail}"
        )
    return {
        "total_seconds": time.monotonic() - began,
        "peak_memory_gib": usage.ru_maxrss / 2**20,
    }


def commands(args: argparse.Namespace, directory: pathlib.Path) -> dict[str, list[str]]:
    """Returns the command of each side; both write under `directory`."""
    shared = [
        f"--data_dir={os.path.abspath(args.data_dir)}",
        f"--epochs={args.epochs}",
        f"--batch_size={args.batch_size}",
        f"--image_size={args.image_size}",
    ]
    for name in ("limit_train_examples", "limit_eval_examples"):
        if getattr(args, name) is not None:
            shared.append(f"--{name}={getattr(args, name)}")
    python = [sys.executable, "-m"]
    ours = ["--train_encoder=false", "--optimizer=adam", "--learning_rate=0.001"]
    ours += ["--schedule=constant", "--augment=true", "--flip=true"]
    return {
        "tutorial": [
            *python,
            "benchmarks.tutorial",
            *shared,
            f"--output={directory / 'tutorial.json'}",
        ],
        "job": [
            *python,
            "trainer.task",
            "--noexport",
            *shared,
            *ours,
            f"--job_dir={directory / 'job'}",
            *args.job_flags,
        ],
    }


def read_tutorial(directory: pathlib.Path) -> dict:
    """Returns what the tutorial reported, its test metrics among the rest."""
    text = (directory / "tutorial.json").read_text(encoding="utf-8")
    result = json.loads(text)
    return {**result, **result.pop("test")}


def read_job(directory: pathlib.Path) -> dict:
    """Returns what our job reported, its test metrics among the rest.

    The median speed leaves out the first row of `metrics.jsonl`, as the tutorial's
    leaves out its first epoch.
    """
    job_dir = directory / "job"
    result = json.loads((job_dir / "result.json").read_text(encoding="utf-8"))
    lines = (job_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [
        row["images_per_second"]
        for row in map(json.loads, lines)
        if row.get("images_per_second") is not None
    ]
    if not result["complete"]:
        raise RuntimeError(f"our job stopped early: {result['stopped_by']}")
    return {
        **{key: result[key] for key in KEPT},
        **result["test"],
        "images_per_second": statistics.median(speeds[1:] or speeds),
    }


def compare(pairs: list[dict[str, dict]]) -> dict[str, dict]:
    """Returns for each row of the table the medians of both sides and of their ratio.

    Args:
        pairs: For each repeat the figures of `tutorial` and of `job`.
    """
    return {
        key: {
            **{side: statistics.median(p[side][key] for p in pairs) for side in SIDES},
            "ratio": statistics.median(
                p["job"][key] / p["tutorial"][key] for p in pairs
            ),
        }
        for key, _, _ in ROWS
    }


def table(comparison: dict[str, dict]) -> str:
    """Returns the comparison as a Markdown table."""
    lines = ["| | tutorial | our job | ours / tutorial |", "| --- | --- | --- | --- |"]
    for key, heading, digits in ROWS:
        row = comparison[key]
        tutorial, job = (f"{row[side]:.{digits}f}" for side in SIDES)
        lines.append(f"| {heading} | {tutorial} | {job} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs both, prints the table, writes `results/<name>.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", required=True, help="TFDS folder with oxford_iiit_pet")
    add("--epochs", type=int, default=20)
    add("--batch_size", type=int, default=64)
    add("--image_size", type=int, default=128, help="side, pixels")
    add("--limit_train_examples", type=int)
    add("--limit_eval_examples", type=int)
    add("--repeats", type=int, default=1, help="pairs of runs, taken in turns")
    add("--name", default="side_by_side", help="of the file in benchmarks/results")
    add("job_flags", nargs="*", help="after --: more flags for our job")
    args = parser.parse_args()

    pairs = []
    reader = {"tutorial": read_tutorial, "job": read_job}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(1, args.repeats + 1):
            directory = pathlib.Path(scratch) / str(repeat)
            directory.mkdir()
            pair = {}
            for side, command in commands(args, directory).items():
                print(f"{repeat}/{args.repeats} {side} ...", flush=True)
                outside = measured(command, directory / f"{side}.log")
                pair[side] = {**reader[side](directory), **outside}
            pairs.append(pair)
        names = {os.path.abspath(args.data_dir): "DIR", str(directory): "OUT"}
        shown = {
            side: machine.shown(command, names)
            for side, command in commands(args, directory).items()
        }
    comparison = compare(pairs)
    print(table(comparison))
    result = {"machine": machine.facts(), "commands": shown, "comparison": comparison}
    machine.RESULTS.mkdir(exist_ok=True)
    path = machine.RESULTS / f"{args.name}.json"
    text = json.dumps({**result, "runs": pairs}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(machine.REPOSITORY)}")


if __name__ == "__main__":
    main()
