"""Measures how long a run takes to its first step, and how much memory it needs at most.

    python -m benchmarks.start --data_dir=DIR

A run on the bundled sample to its first step, and `import tensorflow` alone, each a
process of its own, in turns. Then, if a data set is given, runs of some epochs with all
of its training examples in the cache, for their memory at most. What counts is what a
run adds to TensorFlow. Nothing here imports it: the operating system counts a parent's
memory at the start of its child.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

from benchmarks import machine
from benchmarks.side_by_side import measured

# Without the interpreter's own end, which a run's first step comes before.
IMPORT = [sys.executable, "-c", "import os, tensorflow; os._exit(0)"]
GOAL_SECONDS = 12.0
GOAL_GB = 1.5


def first_step(scratch: pathlib.Path) -> list[str]:
    """Returns the command of a run that is over soon after its first step."""
    flags = ["--total_steps=1", "--limit_eval_examples=8", "--noexport"]
    job_dir = f"--job_dir={scratch / 'job'}"
    return [sys.executable, "-m", "trainer.task", job_dir, *flags]


def whole_run(scratch: pathlib.Path, data_dir: str, epochs: int) -> list[str]:
    """Returns the command of a run with all examples in the cache."""
    flags = [f"--data_dir={os.path.abspath(data_dir)}", f"--epochs={epochs}"]
    flags += ["--batch_size=64", "--cache=memory", f"--job_dir={scratch / 'job'}"]
    return [sys.executable, "-m", "trainer.task", *flags]


def run(command: list[str], scratch: pathlib.Path) -> dict[str, float]:
    """Returns what a process needed, and a run's seconds to its first step.

    These count from the start of the process, as the operating system tells it.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = pathlib.Path(name)
        command = [part.replace(str(scratch), str(folder)) for part in command]
        found = measured(command, folder / "log")
        result = folder / "job" / "result.json"
        if result.exists():
            told = json.loads(result.read_text(encoding="utf-8"))
            found["seconds_to_first_step"] = told["seconds_to_first_step"]
    return found


def compare(bare: list[dict], short: list[dict], whole: list[dict]) -> dict:
    """Returns what runs add to TensorFlow: the medians, over the import of the same turn.

    Args:
        bare: What each `import tensorflow` needed, at least as many as of the others.
        short: What each run to the first step needed.
        whole: What each whole run needed; may be empty.
    """
    added = [
        ours["seconds_to_first_step"] - theirs["total_seconds"]
        for ours, theirs in zip(short, bare, strict=False)
    ]
    found: dict = {
        "import_seconds": statistics.median(r["total_seconds"] for r in bare),
        "seconds_to_first_step": statistics.median(
            r["seconds_to_first_step"] for r in short
        ),
        "seconds_over_import": statistics.median(added),
    }
    found["goals_met"] = {"seconds": found["seconds_over_import"] <= GOAL_SECONDS}
    if whole:
        gib = {
            "import": statistics.median(r["peak_memory_gib"] for r in bare),
            "run": statistics.median(r["peak_memory_gib"] for r in whole),
        }
        gigabytes = {name: value * 2**30 / 1e9 for name, value in gib.items()}
        found["import_gigabytes"] = gigabytes["import"]
        found["run_gigabytes"] = gigabytes["run"]
        found["gigabytes_over_import"] = gigabytes["run"] - gigabytes["import"]
        found["goals_met"]["memory"] = found["gigabytes_over_import"] <= GOAL_GB
    return found


def main() -> None:
    """Runs all in turns, prints a line each, writes start.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", help="TFDS folder with oxford_iiit_pet, for the memory")
    add("--repeats", type=int, default=5, help="of import and first step, in turns")
    add("--epochs", type=int, default=2, help="of a whole run")
    add("--whole_repeats", type=int, default=1, help="whole runs")
    args = parser.parse_args()
    bare, short, whole = [], [], []
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        commands = {"import": IMPORT, "first step": first_step(scratch)}
        for repeat in range(args.repeats):
            bare.append(run(IMPORT, scratch))
            short.append(run(commands["first step"], scratch))
            print(
                f"{repeat + 1} of {args.repeats}: import {bare[-1]['total_seconds']:.1f} s"
                f", first step {short[-1]['seconds_to_first_step']:.1f} s",
                flush=True,
            )
        if args.data_dir:
            commands["whole run"] = whole_run(scratch, args.data_dir, args.epochs)
            for _ in range(args.whole_repeats):
                whole.append(run(commands["whole run"], scratch))
        names = {str(scratch / "job"): "JOB_DIR"}
        names |= {os.path.abspath(args.data_dir): "DIR"} if args.data_dir else {}
    found = compare(bare, short, whole)
    summary = {
        "machine": machine.facts(),
        "commands": {kind: machine.shown(c, names) for kind, c in commands.items()},
        **found,
        "runs": {"import": bare, "first step": short, "whole run": whole},
    }
    path = machine.RESULTS / "start.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        "first step after {seconds_to_first_step:.1f} s, import tensorflow "
        "{import_seconds:.1f} s: {seconds_over_import:.1f} s more".format(**found)
    )
    if whole:
        print(
            "a run's memory at most {run_gigabytes:.2f} GB, import tensorflow "
            "{import_gigabytes:.2f} GB: {gigabytes_over_import:.2f} GB more".format(
                **found
            )
        )


if __name__ == "__main__":
    main()
