"""Says on what a benchmark ran, so that its figures can be judged. No TensorFlow."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
RESULTS = pathlib.Path(__file__).resolve().parent / "results"
MATRIX_SIDE = 2048
# Machines of one name have differed by two; one of them wanders by a tenth.
RATE_TOLERANCE = 0.25
PACKAGES = ["tensorflow", "tensorflow-cpu", "keras", "tensorflow-datasets", "numpy"]


def facts() -> dict:
    """Returns date, processor, cores, memory, speed and versions as JSON values."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "matrix_product_gflops": round(_product_rate() / 1e9),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def kept(path: pathlib.Path) -> dict:
    """Returns a result that more is to be added to.

    Args:
        path: Of the file in results/.

    Raises:
        ValueError: If there is none, or it was taken on another machine or with other
            versions.
    """
    if not path.exists():
        raise ValueError(
            f"{path.name} must be there for more to be added; take all of it"
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in facts().items():
        before = found["machine"].get(name)
        alike = before == value
        if name == "matrix_product_gflops":
            alike = before and abs(before - value) <= RATE_TOLERANCE * value
        if name != "date" and not alike:
            raise ValueError(
                f"{path.name} must be of this machine for more to be added, got {name} "
                f"{before}, here {value}; take all of it anew"
            )
    return found


def shown(command: list[str], names: dict[str, str]) -> str:
    """Returns a command for others to read: places of this machine by name only.

    Args:
        command: The program and its arguments.
        names: For each place, what stands for it: `{str(job_dir): "JOB_DIR"}`.
    """
    text = " ".join(["python", *command[1:]])
    for place in sorted(names, key=len, reverse=True):
        text = text.replace(place, names[place])
    return text


def _product_rate() -> float:
    """Returns the FLOP/s of a product of float32 matrices on all cores, the best of 5."""
    import numpy as np  # Here: children start with the memory of who measures theirs.

    a = np.ones((MATRIX_SIDE, MATRIX_SIDE), np.float32)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * MATRIX_SIDE**3 / min(seconds)


def _cpu() -> str:
    """Returns the processor's name, where Linux tells it."""
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
