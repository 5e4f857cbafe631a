"""Trains from a bucket at a distance and from the local disk, in turns.

    python -m benchmarks.gcs --data_dir=DIR

The bucket is a real server on this machine, behind a proxy that adds latency to each
request and limits each connection's bandwidth: TensorFlow's own gs:// code runs. Both
sides read everything anew in each epoch (--cache=none) and save every 60 seconds; the
one keeps data and job_dir in the bucket, the other both on the disk. Validation is the
test split, so that the train files are read by training alone and can be counted.
"""

import argparse
import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from benchmarks import machine
from tests.gcs import programs, server

BUCKET = "benchmark"
TOLD = ("result.json", "metrics.jsonl")
# What both sides are given.
FLAGS = [
    "--cache=none",
    "--val_split=test",
    "--test_split=none",
    "--limit_eval_examples=64",
    "--checkpoint_every_seconds=60",
    "--noexport",
]


def run(
    data_dir: str, job_dir: str, scratch: pathlib.Path, environment: dict, flags: list
) -> dict:
    """Returns what a run says of itself, read from its copy of result.json."""
    command = [sys.executable, "-m", "trainer.task", *flags]
    command += [f"--data_dir={data_dir}", f"--job_dir={job_dir}"]
    log = scratch / "log"
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            stdout=output,
            stderr=output,
            cwd=machine.REPOSITORY,
            env={**os.environ, **environment},
            check=False,
        )
    if done.returncode:
        raise RuntimeError(
            f"exit code {done.returncode}: {' '.join(command)}\n{log.read_text()[-2000:]}"
        )
    return {"command": command}


def figures(result_json: bytes, metrics_jsonl: bytes) -> dict:
    """Returns of what a run wrote what is compared."""
    result = json.loads(result_json)
    rows = [json.loads(line) for line in metrics_jsonl.splitlines()]
    seconds = result["train_seconds"]
    steady = [row for row in rows if row["kind"] == "train"][1:]
    return {
        "images_per_second": statistics.median(r["images_per_second"] for r in steady),
        "waiting_for_data": statistics.fmean(r["waiting_for_data"] for r in steady),
        "images_per_second_over_all": result["train_images_per_second"],
        "train_seconds": seconds,
        "share_stood_still_for_saves": result["save_wait_seconds"] / seconds,
        "seconds_to_first_step": result["seconds_to_first_step"],
    }


def counted(requests: list[dict], split_bytes: int, epochs: float) -> dict:
    """Returns requests by kind, and the bytes that training read, for one epoch."""
    kinds = collections.Counter(request["kind"] for request in requests)
    read = sum(
        request["bytes_sent"]
        for request in requests
        if request["kind"] == "read" and "-train." in request["object"]
    )
    return {
        "requests_per_epoch": {kind: n / epochs for kind, n in sorted(kinds.items())},
        "train_bytes_per_epoch": read / epochs,
        "train_split_bytes": split_bytes,
        "ratio": read / epochs / split_bytes,
    }


def main() -> None:
    """Runs both sides in turns, prints a table, writes `results/gcs.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", required=True, help="TFDS folder with oxford_iiit_pet")
    add("--epochs", type=int, default=2)
    add("--repeats", type=int, default=1, help="pairs of runs, taken in turns")
    add("--latency_ms", type=float, default=30.0, help="of each request")
    add("--bandwidth_mb", type=float, default=100.0, help="MB/s of each connection")
    add("job_flags", nargs="*", help="after --: more flags for both sides")
    args = parser.parse_args()
    if reason := programs.missing():
        sys.exit(reason)
    folder = pathlib.Path(args.data_dir).resolve()
    files = sorted((folder / "oxford_iiit_pet").rglob("*-train.tfrecord*"))
    split_bytes = sum(file.stat().st_size for file in files)
    flags = [*FLAGS, f"--epochs={args.epochs}", *args.job_flags]

    pairs: list[dict[str, dict]] = []
    with tempfile.TemporaryDirectory() as name, server.serve() as gcs:
        scratch = pathlib.Path(name)
        gcs.make_bucket(BUCKET)
        gcs.upload(folder, f"gs://{BUCKET}/data")
        gcs.set_faults(
            latency_seconds=args.latency_ms / 1e3,
            bytes_per_second=args.bandwidth_mb * 1e6,
        )
        for repeat in range(1, args.repeats + 1):
            print(f"{repeat}/{args.repeats} disk ...", flush=True)
            job_dir = scratch / f"run-{repeat}"
            local = run(str(folder), str(job_dir), scratch, {}, flags)
            disk = figures(*((job_dir / name).read_bytes() for name in TOLD))
            print(f"{repeat}/{args.repeats} bucket ...", flush=True)
            before, prefix = len(gcs.requests()), f"run-{repeat}"
            places = (f"gs://{BUCKET}/data", f"gs://{BUCKET}/{prefix}")
            remote = run(*places, scratch, gcs.environment, flags)
            written = gcs.objects(BUCKET, prefix)
            requests = gcs.requests()[before:]
            bucket = figures(*(written[f"{prefix}/{name}"] for name in TOLD))
            bucket |= counted(requests, split_bytes, args.epochs)
            pairs.append({"disk": disk, "bucket": bucket})
        names = {str(folder): "DIR", str(job_dir): "JOB_DIR"}
        shown = {
            "disk": machine.shown(local["command"], names),
            "bucket": machine.shown(remote["command"], names),
        }

    ratio = statistics.median(
        p["bucket"]["images_per_second"] / p["disk"]["images_per_second"] for p in pairs
    )
    # With evaluations, saves and whatever stalled between the rows.
    whole = statistics.median(
        p["disk"]["train_seconds"] / p["bucket"]["train_seconds"] for p in pairs
    )
    still = statistics.median(p["bucket"]["share_stood_still_for_saves"] for p in pairs)
    read = statistics.median(p["bucket"]["ratio"] for p in pairs)
    summary = {
        "machine": machine.facts(),
        "latency_ms": args.latency_ms,
        "bandwidth_mb_per_second": args.bandwidth_mb,
        "commands": shown,
        "speed_bucket_over_disk": ratio,
        "train_seconds_disk_over_bucket": whole,
        "share_stood_still_for_saves": still,
        "train_bytes_read_over_split": read,
        "runs": pairs,
    }
    machine.RESULTS.mkdir(exist_ok=True)
    path = machine.RESULTS / "gcs.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"images/s, bucket over disk: {ratio:.3f}; all of training: {whole:.3f}")
    waits = {
        side: statistics.median(p[side]["waiting_for_data"] for p in pairs)
        for side in ("disk", "bucket")
    }
    print(
        f"waited for data: {waits['disk']:.2%} on the disk, {waits['bucket']:.2%} in the bucket"
    )
    print(f"stood still for saves: {still:.2%} of training")
    print(f"bytes of the train files read in an epoch, over their size: {read:.3f}")
    kinds = pairs[-1]["bucket"]["requests_per_epoch"]
    print("requests an epoch: " + ", ".join(f"{k} {n:g}" for k, n in kinds.items()))


if __name__ == "__main__":
    main()
