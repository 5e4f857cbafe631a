"""Trains by several recipes in turn: how good in how many minutes, beside the tutorial.

    python -m benchmarks.quality --data_dir=DIR
    python -m benchmarks.quality --data_dir=DIR --add --runs "best, long"

Each run is a process of its own on the same data, cores and code. Minutes are those of
the whole process, from its start to its end; minutes to a quality end with the line that
tells of it. What is to be reached is the mean IoU of the tutorial after its 20 epochs: on
test for the tutorial, which keeps no validation data; on validation, at the size that the
model sees, for our job. All are judged on test at the tutorial's 128 pixels, whatever the
model sees; ours a second time as the mean over each image and its mirror image.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from benchmarks import machine

# Flags of our job beside data_dir and job_dir. The tutorial is a program of its own; best
# has as many epochs as fit into about its minutes, short into an eighth; long, finer and
# in bfloat16, takes less than four times them where the processor multiplies in that.
RUNS: dict[str, list[str]] = {
    "tutorial": [],
    "ours": ["--recipe=tutorial"],
    "best": ["--recipe=best", "--epochs=12"],
    "best, short": [
        *("--recipe=best", "--epochs=2", "--image_size=128", "--batch_size=8"),
        *("--warmup_steps=100", "--ema_decay=0.99", "--eval_every_steps=207"),
    ],
    "best, long": [
        *("--recipe=best", "--epochs=34", "--precision=mixed_bfloat16"),
        *("--image_size=320", "--train_image_size=256"),
        *("--loss=cross_entropy+2*lovasz", "--class_weights=1,1,1.3"),
    ],
}
SIZE = 128  # Side at which all are judged, pixels.
DEFAULT = ["tutorial", "ours", "best", "best, short"]
HEADINGS = {
    "minutes": "minutes",
    "minutes_to_tutorials": "until the tutorial's mean IoU",
    "mean_iou": "test mean IoU",
    "mirrored_mean_iou": "mirrored too",
    "pixel_accuracy": "test pixel accuracy",
    "iou/pet": "pet",
    "iou/background": "background",
    "iou/border": "border",
}
VALIDATION = re.compile(r"val_mean_iou=([0-9.]+)")


def command(name: str, data_dir: str, out: pathlib.Path) -> list[str]:
    """Returns the command of a run, which writes to the directory `out`."""
    python = [sys.executable, "-m"]
    if name == "tutorial":
        output = f"--output={out / 'tutorial.json'}"
        return [*python, "benchmarks.tutorial", f"--data_dir={data_dir}", output]
    shared = [f"--data_dir={data_dir}", f"--job_dir={out / 'job'}", "--noexport"]
    return [*python, "trainer.task", *shared, *RUNS[name]]


def timed(
    command: list[str], log: pathlib.Path
) -> tuple[float, list[tuple[float, float]]]:
    """Runs a command; returns its minutes, and when it told of which validation.

    Args:
        command: The program and its arguments.
        log: File that gets what it prints.

    Returns:
        Minutes in all; for each line with a `val_mean_iou`, minutes since the start and
        its value.

    Raises:
        RuntimeError: If the command fails.
    """
    began, told = time.monotonic(), []
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=machine.REPOSITORY,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if found := VALIDATION.search(line):
                told.append(((time.monotonic() - began) / 60, float(found[1])))
    if process.returncode:
        tail = log.read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"exit code {process.returncode}: {command}\n{tail}")
    return (time.monotonic() - began) / 60, told


def result(name: str, out: pathlib.Path) -> dict[str, float]:
    """Returns the metrics of a finished run on test, at the tutorial's size."""
    if name == "tutorial":
        found = json.loads((out / "tutorial.json").read_text(encoding="utf-8"))
        return {**found["test"], "examples": found["test_examples"]}
    metrics = []
    for mirrored in (False, True):
        flags = [f"--job_dir={out / 'job'}", f"--at={SIZE}", f"--output_dir={out}"]
        flags += ["--tta=flip"] * mirrored
        timed([sys.executable, "-m", "trainer.evaluate", *flags], out / "judged")
        file = out / f"evaluation-test-{SIZE}{'-flip' * mirrored}.json"
        report = json.loads(file.read_text(encoding="utf-8"))
        metrics.append(report["metrics"])
    plain, mirror = metrics
    return {
        **plain,
        "mirrored_mean_iou": mirror["mean_iou"],
        "examples": report["examples"],
    }


def reached(told: list[tuple[float, float]], mean_iou: float) -> float | None:
    """Returns after how many minutes a validation was as good, if one was."""
    return next((minutes for minutes, value in told if value >= mean_iou), None)


def rows(runs: dict[str, dict]) -> dict[str, dict[str, float | None]]:
    """Returns the table's rows, minutes also over the tutorial's."""
    tutorial = runs.get("tutorial")
    found = {}
    for name, run in runs.items():
        row = {key: run["test"].get(key) for key in HEADINGS if key in run["test"]}
        row["minutes"] = run["minutes"]
        row["minutes_to_tutorials"] = None
        if tutorial is not None:
            goal = tutorial["test"]["mean_iou"]
            at = run["minutes"] if name == "tutorial" else reached(run["told"], goal)
            row["minutes_to_tutorials"] = at
            row["minutes_over_tutorials"] = run["minutes"] / tutorial["minutes"]
            row["to_tutorials_over_its"] = at and at / tutorial["minutes"]
        found[name] = row
    return found


def table(found: dict[str, dict[str, float | None]]) -> str:
    """Returns the rows as Markdown."""

    def shown(key: str, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.1f}" if key.startswith("minutes") else f"{value:.4f}"

    lines = [
        f"| run | {' | '.join(HEADINGS.values())} |",
        f"| --- |{' ---: |' * len(HEADINGS)}",
    ]
    for name, row in found.items():
        cells = [shown(key, row.get(key)) for key in HEADINGS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains, prints the table, writes quality.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", required=True, help="TFDS folder with oxford_iiit_pet")
    add("--runs", nargs="+", default=DEFAULT, choices=RUNS)
    add("--add", action="store_true", help="keep the other runs of the file")
    add("--name", default="quality", help="of the file in benchmarks/results")
    args = parser.parse_args()
    data_dir = os.path.abspath(args.data_dir)
    path = machine.RESULTS / f"{args.name}.json"
    try:
        runs = machine.kept(path)["runs"] if args.add else {}
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.runs:
            print(f"{name} ...", flush=True)
            out = pathlib.Path(scratch) / name
            out.mkdir()
            asked = command(name, data_dir, out)
            minutes, told = timed(asked, out / "log")
            runs[name] = {
                "command": machine.shown(asked, {data_dir: "DIR", str(out): "OUT"}),
                "minutes": minutes,
                "told": told,
                "test": result(name, out),
            }
    found = rows(runs)
    print(table(found))
    summary = {"machine": machine.facts(), "rows": found, "runs": runs}
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(machine.REPOSITORY)}")


if __name__ == "__main__":
    main()
