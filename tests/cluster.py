"""Runs of several worker processes on this machine, and which examples they took."""

import collections
import json
import os
import pathlib
import subprocess
import sys

from tests.gcs import programs

# Trains as `tests.small` does, and writes down what each step took of which epoch.
RECORDED = """
import json, sys

from tests import small
from trainer import data, task

path, train_elements = sys.argv.pop(1), data.train_elements

def recorded(*args, **settings):
    size, workers = settings.get("step_size", 1), settings.get("workers", 1)
    with open(path, "a") as file:
        for i, element in enumerate(train_elements(*args, **settings)):
            if size > 1:  # Not the first picture's.
                step = settings["start"] // size + i // (size // workers) + 1
                file.write(json.dumps([step, element[1], element[0]]) + "\\n")
                file.flush()
            yield element

data.train_elements = recorded
task.command()
"""


def tf_configs(count: int, chief: bool = False) -> list[str]:
    """Returns TF_CONFIG of each worker, the first as a chief or as worker 0."""
    addresses = [f"127.0.0.1:{port}" for port in programs.free_ports(count)]
    tasks = [("worker", index) for index in range(count)]
    cluster = {"worker": addresses}
    if chief:
        cluster = {"chief": addresses[:1], "worker": addresses[1:]}
        tasks = [("chief", 0), *(("worker", index) for index in range(count - 1))]
    return [
        json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})
        for job, index in tasks
    ]


def start(
    count: int,
    args: list[str],
    log: pathlib.Path,
    record: pathlib.Path | None = None,
    module: str = "trainer.task",
) -> list[subprocess.Popen]:
    """Starts the workers of a run; one where the count is 1, without TF_CONFIG.

    Args:
        count: How many.
        args: Flags of the run.
        log: What they print goes to `<log>-N`.
        record: Where the examples that they take are written, to `<record>-N`, by a run
            of `tests.small`.
        module: Which is run where nothing is recorded.
    """
    entry = ["-m", module] if record is None else ["-c", RECORDED]
    processes = []
    for index, text in enumerate(tf_configs(count)):
        path = [] if record is None else [f"{record}-{index}"]
        environment = {**os.environ, "TF_CONFIG": text}
        if count == 1:
            del environment["TF_CONFIG"]
        with open(f"{log}-{index}", "ab") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *entry, *path, *args],
                    env=environment,
                    stdout=output,
                    stderr=output,
                )
            )
    return processes


def end(processes: list[subprocess.Popen], seconds: float = 300.0) -> list[int]:
    """Returns the exit codes of processes, which are killed if they take too long."""
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def recorded(record: pathlib.Path) -> dict[int, list[tuple[int, int]]]:
    """Returns what each step took, (epoch, id) in order, of all workers together.

    Streams read ahead; what a step takes that is made again after a restart is there
    twice, and must be the same.
    """
    taken: dict[int, set] = collections.defaultdict(set)
    for path in record.parent.glob(f"{record.name}-*"):
        for line in path.read_text().splitlines():
            step, epoch, id = json.loads(line)
            taken[step].add((epoch, id))
    return {step: sorted(examples) for step, examples in taken.items()}
