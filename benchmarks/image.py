"""Says how large the container image is, and how long it takes to build and to run.

    python -m benchmarks.image

Without a Docker engine, as root, with Debian's buildah and mmdebstrap: a small Debian
stands in for the base image, and counts with its own size. The image is built from
nothing, then trains two steps on the bundled sample, with no network.
"""

import json
import os
import pathlib
import tempfile
import time

from benchmarks import machine
from tests import image

FLAGS = ["--total_steps=2", "--batch_size=4", "--image_size=64"]
FLAGS += ["--limit_train_examples=32", "--limit_eval_examples=8"]


def main() -> None:
    """Builds the cpu image, prints a line, writes image.json."""
    if reason := image.missing():
        raise SystemExit(reason)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="image-"))
    with (
        tempfile.TemporaryDirectory(prefix="job-") as folder,
        image.built(scratch, dict(os.environ)) as built,
    ):
        job = pathlib.Path(folder)
        job.chmod(0o777)  # The image may run as another user.
        began = time.monotonic()
        done = built.run(*built.entrypoint(), "--job_dir=/job/run", *FLAGS, job=job)
        seconds = time.monotonic() - began
        done.check_returncode()
    summary = {
        "machine": machine.facts(),
        "command": "python -m benchmarks.image",
        "variant": "cpu",
        "bytes": built.num_bytes,
        "bytes_of_stand_in_base": built.base_bytes,
        "seconds_to_build": round(built.seconds, 1),
        "seconds_to_make_stand_in_base": round(built.base_seconds, 1),
        "seconds_of_two_steps": round(seconds, 1),
    }
    path = machine.RESULTS / "image.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(
        f"{built.num_bytes / 1e9:.2f} GB, built in {built.seconds:.0f} s, "
        f"two steps in {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
