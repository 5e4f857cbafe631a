"""Compiles our steps for TPU v5e, with no TPU, and says what the chip's limits allow.

    make .venv-tpu/locked
    python -m benchmarks.tpu_compile

The functions that a run gives to its replicas are lowered to StableHLO and pushed
through libtpu's compiler for one chip; so is the tutorial's step, as the yardstick. What
does not compile here would not on a TPU. Nothing is executed: figures are the compiler's.

Letters: N examples, S side in pixels.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Callable
from unittest import mock

import keras
import tensorflow as tf

from benchmarks import hlo, machine, tutorial
from trainer import config, evaluation_step, model, step, sums

TOPOLOGY = "v5e:2x2"
# Of one v5e chip. Source: "TPU v5e", table of key chip specifications,
# https://cloud.google.com/tpu/docs/v5e. Float32 convolutions are bfloat16 ones on it, by
# XLA's default precision.
FLOPS_PER_SECOND = 197e12
HBM_BYTES_PER_SECOND = 819e9
HBM_BYTES = 16e9

NUM_CLASSES = len(tutorial.CLASS_NAMES)
PYTHON = machine.REPOSITORY / ".venv-tpu" / "bin" / "python"
Step = tuple[Callable[..., object], tuple[tf.TensorSpec, ...]]
HEADINGS = (
    *(
        "step",
        "precision",
        "batch",
        "TFLOP",
        "GB accessed",
        "GB of HBM",
        "GB temporary",
    ),
    *("MB in", "MB out", "ms at least", "MB accessed/image", "MB of HBM/image", "fits"),
)


def training(precision: str, batch: int, image_size: int) -> Step:
    """Returns the step of training with the default recipe, and its arguments."""
    settings = config.Config(precision=precision)
    unet = _unet(settings, image_size)
    optimizer = step.make_optimizer(
        unet,
        name=settings.optimizer,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        total_steps=1,  # The constant rate does not ask.
        weight_decay=settings.weight_decay,
    )
    function = step.make_replica_step(unet, optimizer, clip_norm=settings.clip_norm)
    return function, _batch(batch, image_size)


def evaluation(precision: str, batch: int, image_size: int) -> Step:
    """Returns the step of evaluation, and its arguments."""
    unet = _unet(config.Config(precision=precision), image_size)
    return evaluation_step.make_replica_step(unet, NUM_CLASSES), _batch(
        batch, image_size
    )


def tutorials(precision: str, batch: int, image_size: int) -> Step:
    """Returns the step of `Model.fit` for the tutorial's model, and its arguments."""
    keras.config.set_dtype_policy(precision)
    unet = tutorial.unet_model(NUM_CLASSES, image_size, encoder_weights=None)
    unet.compile(**tutorial.COMPILED)
    shapes = (image_size, image_size, 3), (image_size, image_size, 1)
    unet.train_on_batch(
        *(tf.zeros((1, *shape)) for shape in shapes)
    )  # Makes all of it.
    arguments = tuple(tf.TensorSpec((batch, *shape), tf.float32) for shape in shapes)
    return lambda image, mask: unet.train_step((image, mask)), arguments


# Name, what makes the step, precision, examples of the step.
CASES: list[tuple[str, Callable[[str, int, int], Step], str, int]] = [
    ("tutorial", tutorials, "float32", 64),
    ("tutorial", tutorials, "float32", 1024),
    ("training", training, "float32", 64),
    ("training", training, "mixed_bfloat16", 64),
    ("training", training, "float32", 1024),
    ("training", training, "mixed_bfloat16", 1024),
    ("evaluation", evaluation, "float32", 64),
    ("evaluation", evaluation, "mixed_bfloat16", 64),
]


def _unet(settings: config.Config, image_size: int) -> keras.Model:
    return model.build_unet(
        image_size=image_size,
        num_classes=NUM_CLASSES,
        encoder_weights="none",  # Weights are arguments of the step.
        train_encoder=settings.train_encoder,
        train_encoder_batch_norm=settings.train_encoder_batch_norm,
        precision=settings.precision,
    )


def _batch(batch: int, image_size: int) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """Returns what the replicas get: image (N, S, S, 3) and mask (N, S, S), uint8."""
    mask = (batch, image_size, image_size)
    return tf.TensorSpec((*mask, 3), tf.uint8), tf.TensorSpec(mask, tf.uint8)


def stablehlo(make: Callable[[], Step]) -> str:
    """Returns the step as StableHLO, in the arithmetic that it has on a TPU."""
    # The answer that a TPUStrategy would get, which cannot be made without a TPU.
    with mock.patch.object(sums, "exact", lambda: False):
        function, arguments = make()
        compiled = tf.function(function, jit_compile=True)
        lower = compiled.experimental_get_compiler_ir(*arguments)
        text = lower(stage="stablehlo", platform_name="CPU")
    # Older than StableHLO, and the only operation here that is not part of it.
    return text.replace("mhlo.copy", "stablehlo.optimization_barrier")


def limits(figures: dict, batch: int) -> dict:
    """Returns what the chip's limits make of the compiler's figures.

    Args:
        figures: Of `benchmarks.tpu_compiler`, and `hlo.hbm_bytes`.
        batch: Examples of the step.
    """
    compute = figures["flops"] / FLOPS_PER_SECOND
    memory = figures["hbm_bytes"] / HBM_BYTES_PER_SECOND
    # Weights are updated in place: outputs that alias arguments take no room.
    held = ("argument_bytes", "output_bytes", "temporary_bytes", "code_bytes")
    room = sum(figures[name] for name in held) - figures["alias_bytes"]
    return {
        "compute_seconds": compute,
        "memory_seconds": memory,
        "seconds_at_least": max(compute, memory),
        "bytes_accessed_per_image": figures["bytes_accessed"] / batch,
        "hbm_bytes_per_image": figures["hbm_bytes"] / batch,
        "bytes_held": room,
        "fits": room <= HBM_BYTES,
    }


def measured(make: Callable[[], Step], batch: int, scratch: pathlib.Path) -> dict:
    """Returns all figures of a step; its programs stay in `scratch`."""
    source, target = scratch / "step.mlir", scratch / "step.hlo"
    source.write_text(stablehlo(make), encoding="utf-8")
    script = machine.REPOSITORY / "benchmarks" / "tpu_compiler.py"
    command = [str(PYTHON), str(script), TOPOLOGY, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    figures = json.loads(done.stdout)
    figures["hbm_bytes"] = hlo.hbm_bytes(target.read_text(encoding="utf-8"))
    return {**figures, **limits(figures, batch)}


def table(cases: list[dict]) -> str:
    """Returns the figures as a Markdown table."""
    lines = [f"| {' | '.join(HEADINGS)} |", "| --- " * len(HEADINGS) + "|"]
    for case in cases:
        cells = [
            *(case["step"], case["precision"], case["batch"]),
            f"{case['flops'] / 1e12:.2f}",
            f"{case['bytes_accessed'] / 1e9:.2f}",
            f"{case['hbm_bytes'] / 1e9:.2f}",
            f"{case['temporary_bytes'] / 1e9:.2f}",
            f"{case['argument_bytes'] / 1e6:.0f}",
            f"{case['output_bytes'] / 1e6:.0f}",
            f"{case['seconds_at_least'] * 1e3:.2f}",
            f"{case['bytes_accessed_per_image'] / 1e6:.1f}",
            f"{case['hbm_bytes_per_image'] / 1e6:.1f}",
            "yes" if case["fits"] else "no",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Compiles every case, prints a table, writes `results/tpu_compile.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--image_size",
        type=int,
        default=config.Config().image_size,
        help="side, pixels",
    )
    args = parser.parse_args()
    if not PYTHON.exists():
        parser.error("the compiler is not installed; make .venv-tpu/locked")
    cases: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, make, precision, batch in CASES:
            print(f"{name} {precision} {batch} ...", flush=True)
            made = functools.partial(make, precision, batch, args.image_size)
            figures = measured(made, batch, pathlib.Path(scratch))
            versions = figures.pop("versions")
            case = {"step": name, "precision": precision, "batch": batch, **figures}
            cases.append(case)
    print(table(cases))
    result = {
        "machine": machine.facts(),
        "command": f"python -m benchmarks.tpu_compile --image_size={args.image_size}",
        "compiler": {"topology": TOPOLOGY, **versions},
        "limits": {
            "flops_per_second": FLOPS_PER_SECOND,
            "hbm_bytes_per_second": HBM_BYTES_PER_SECOND,
            "hbm_bytes": HBM_BYTES,
        },
        "cases": cases,
    }
    path = machine.RESULTS / "tpu_compile.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(machine.REPOSITORY)}")


if __name__ == "__main__":
    main()
