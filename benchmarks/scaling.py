"""Measures what several replicas and workers cost, and says what they would on chips.

    python -m benchmarks.scaling

The same run at the same global batch on the same cores, in turns: one device, two
mirrored replicas, two workers. No core is added, so what is lost is the overhead. The
bytes that workers send are read off the loopback interface. From those and the chips'
data sheets follows, on paper, what a step takes on more devices.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time

from benchmarks import machine
from tests import cluster

GLOBAL_BATCH = 64
KINDS = {"one device": (1, 1), "2 replicas": (1, 2), "2 workers": (2, 1)}
DEVICES = (8, 64, 512)
# What a device sends, bytes/s. Sources: TPU v5e, 1600 Gbit/s between chips,
# cloud.google.com/tpu/docs/v5e; where each chip is a host of its own, 100 Gbit/s of
# network is common, cloud.google.com/compute/docs/network-bandwidth.
LINKS = {"chips of one TPU v5e slice": 1600e9 / 8, "over a network": 100e9 / 8}


def flags_of(job_dir: pathlib.Path, replicas: int, steps: int) -> list[str]:
    """Returns the flags of a run."""
    return [
        *(f"--job_dir={job_dir}", f"--global_batch_size={GLOBAL_BATCH}"),
        *(f"--total_steps={steps}", f"--eval_every_steps={steps}"),
        *("--log_every_steps=5", "--limit_eval_examples=8", "--test_split=none"),
        *([f"--num_cpu_devices={replicas}"] if replicas > 1 else []),
    ]


def run(kind: str, scratch: pathlib.Path, steps: int) -> dict:
    """Returns images/s of a run, and the bytes that the loopback carried for a step."""
    workers, replicas = KINDS[kind]
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        job_dir = pathlib.Path(name) / "job"
        processes = cluster.start(
            workers, flags_of(job_dir, replicas, steps), scratch / "log"
        )
        seen: list[tuple[int, int]] = []
        watching = threading.Event()
        watcher = threading.Thread(target=_watch, args=(job_dir, seen, watching))
        watcher.start()
        try:
            codes = cluster.end(processes, 1800)
        finally:
            watching.set()
            watcher.join()
        if any(codes):
            raise RuntimeError((scratch / "log-0").read_text()[-2000:])
        lines = (job_dir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"][1:]
    return {
        "images_per_second": statistics.median(r["images_per_second"] for r in rows),
        "bytes_per_step": per_step(seen),
    }


def _watch(job_dir: pathlib.Path, seen: list, ended: threading.Event) -> None:
    """Notes at each new row its step, and what the loopback had carried by then."""
    path = job_dir / "metrics.jsonl"
    while not ended.wait(0.05):
        lines = path.read_text().splitlines() if path.exists() else []
        told = [json.loads(line) for line in lines if line.endswith("}")]
        step = max((r["step"] for r in told if r["kind"] == "train"), default=0)
        if step and (not seen or step > seen[-1][0]):
            seen.append(
                (step, loopback_bytes(pathlib.Path("/proc/net/dev").read_text()))
            )


def loopback_bytes(text: str) -> int:
    """Returns the bytes that the loopback has sent, of /proc/net/dev."""
    [line] = [x for x in text.splitlines() if x.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])


def per_step(seen: list[tuple[int, int]]) -> float:
    """Returns bytes a step between the first and the last (step, bytes so far)."""
    if len(seen) < 2:
        return 0.0
    (first, before), (last, after) = seen[0], seen[-1]
    return (after - before) / (last - first)


def on_paper(step_seconds: float, weight_bytes: int, link: float, devices: int) -> dict:
    """Returns the step time and efficiency on more devices, each with its own batch.

    step = t + 2 (n - 1) / n * w / b: a ring passes each of the n parts of the gradient
    on n - 1 times to sum it and n - 1 times to tell it. Nothing of it is hidden behind
    the computing, and no latency is counted.

    Args:
        step_seconds: t, of one device with its batch.
        weight_bytes: w, of what is trained.
        link: b, bytes/s that a device sends.
        devices: n.
    """
    seconds = step_seconds + 2 * (devices - 1) / devices * weight_bytes / link
    return {
        "devices": devices,
        "step_seconds": seconds,
        "efficiency": step_seconds / seconds,
    }


def trained_bytes() -> int:
    """Returns the bytes of the weights that the default run trains."""
    from trainer import model

    unet = model.build_unet(image_size=128, num_classes=3, encoder_weights="none")
    return sum(4 * int(v.value.shape.num_elements()) for v in unet.trainable_variables)


def chip_seconds(path: pathlib.Path) -> float:
    """Returns the least seconds of a bfloat16 step at batch 64 on a TPU v5e."""
    cases = json.loads(path.read_text())["cases"]
    [found] = [
        case
        for case in cases
        if (case["step"], case["precision"], case["batch"])
        == ("training", "mixed_bfloat16", 64)
    ]
    return found["seconds_at_least"]


def main() -> None:
    """Runs each kind in turns, prints the table, writes scaling.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--repeats", type=int, default=2, help="runs of each kind, taken in turns")
    add("--steps", type=int, default=40)
    args = parser.parse_args()
    runs: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(args.repeats):
            for kind, found in runs.items():
                began = time.monotonic()
                found.append(run(kind, pathlib.Path(name), args.steps))
                seconds = time.monotonic() - began
                print(
                    f"{repeat + 1}/{args.repeats} {kind}: {seconds:.0f} s", flush=True
                )
    weights = trained_bytes()
    speed = {
        kind: statistics.median(
            mine["images_per_second"] / one["images_per_second"]
            for mine, one in zip(found, runs["one device"], strict=True)
        )
        for kind, found in runs.items()
    }
    quiet = statistics.median(r["bytes_per_step"] for r in runs["one device"])
    sent = statistics.median(r["bytes_per_step"] for r in runs["2 workers"]) - quiet
    seconds = chip_seconds(machine.RESULTS / "tpu_compile.json")
    paper = {
        chip: [on_paper(seconds, weights, link, n) for n in DEVICES]
        for chip, link in LINKS.items()
    }
    summary = {
        "machine": machine.facts(),
        "command": machine.shown(
            [sys.executable, "-m", "benchmarks.scaling", f"--repeats={args.repeats}"],
            {},
        ),
        "global_batch": GLOBAL_BATCH,
        "speed_over_one_device": speed,
        "trained_weight_bytes": weights,
        "bytes_sent_per_step_by_both_workers": sent,
        "bytes_sent_by_each_over_weights": sent / 2 / weights,
        "step_seconds_on_one_chip": seconds,
        "on_paper": paper,
        "runs": runs,
    }
    path = machine.RESULTS / "scaling.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for kind, ratio in speed.items():
        print(f"{kind}: {ratio:.2f} of the speed of one device")
    print(
        f"each worker sends {sent / 2 / weights:.2f} times the trained weights a step"
    )
    for chip, rows in paper.items():
        for row in rows:
            print(
                "{0}, {devices} devices: {step_seconds:.4f} s a step, efficiency "
                "{efficiency:.3f}".format(chip, **row)
            )


if __name__ == "__main__":
    main()
