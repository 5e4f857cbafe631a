"""Measures our training step against the tutorial's, PyTorch's, and the machine's limit.

    make .venv-torch/locked
    python -m benchmarks.step

The same network, batch and optimizer, input in memory: our step, the tutorial's
`Model.fit`, and PyTorch's, eager and compiled. They take turns within each round, and so
does a large product of matrices, which is what the machine can do at best. Our step, the
tutorial's and PyTorch's each live in a process of their own that computes only when it is
asked.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

from benchmarks import flops, machine, step_figures, turns
from benchmarks.step_figures import Case
from trainer.command import TENSORFLOW_DEFAULTS

NUM_CLASSES = 3
PYTHON = machine.REPOSITORY / ".venv-torch" / "bin" / "python"
# What our commands ask TensorFlow for; `fit` has its defaults, as the tutorial has.
ENVIRON = {"TF_ENABLE_ONEDNN_OPTS": TENSORFLOW_DEFAULTS["TF_ENABLE_ONEDNN_OPTS"]}
LOGITS_TOLERANCE = 1e-3  # PyTorch's less ours, over the largest of ours.


def check(
    tensorflow: turns.Side, torch: turns.Side, path: str, args: argparse.Namespace
) -> None:
    """Writes the weights and the batch that PyTorch starts from; compares both networks.

    Args:
        tensorflow: Writes them.
        torch: Reads them.
        path: The file.
        args: Batch and image size.

    Raises:
        ValueError: If they are not the same network.
    """
    parameters = tensorflow.ask("write", path, args.batch_size, args.image_size)
    theirs, difference = torch.ask("check", path)
    if parameters != theirs or not difference <= LOGITS_TOLERANCE:
        raise ValueError(
            f"PyTorch's network must be ours: {theirs} parameters, ours {parameters}; "
            f"logits differ by {difference:.1e} of the largest"
        )
    print(f"PyTorch's logits differ from ours by {difference:.0e} of the largest")


class Measurement:
    """The processes, and the rates of the turns so far."""

    def __init__(self, args: argparse.Namespace, path: str) -> None:
        """Starts the processes.

        Args:
            args: Of the command line.
            path: For the batch and the weights that PyTorch starts from.

        Raises:
            ValueError: If PyTorch's network is not ours.
        """
        self.args, self.path = args, path
        self.rates: dict[Case, list[float]] = {}
        self.products: dict[str, list[float]] = {}
        self.left_out: list[str] = []
        self.torch: turns.Side | None = None
        self.torch_version: str | None = None
        command = [sys.executable, "-m", "benchmarks.step_tensorflow"]
        self.tensorflow = turns.Side(command, **ENVIRON)
        self.fit = turns.Side(command) if "fit" in args.only else None
        if set(args.only) & set(step_figures.OF_TORCH):
            self.torch = turns.Side([str(PYTHON), "-m", "benchmarks.step_pytorch"])
            self.torch_version = self.torch.ask("version")
            check(self.tensorflow, self.torch, path, args)

    def end(self) -> None:
        """Ends the processes."""
        for side in (self.tensorflow, self.fit, self.torch):
            if side is not None:
                side.end()

    def turn(self, case: Case) -> tuple[float, float | None]:
        """Returns the seconds of a turn, and its last loss where it can be compared."""
        args, trained = self.args, case.encoder == "trained"
        if case.side in step_figures.OF_TORCH:
            assert self.torch is not None
            layout = case.side != "eager", case.side == "compiled"
            what = (self.path, trained, case.precision, *layout)
            return self.torch.ask("turn", *what, args.steps)
        what = (case.side, trained, case.precision, args.batch_size, args.image_size)
        tensorflow = self.fit if case.side == "fit" else self.tensorflow
        assert tensorflow is not None
        return tensorflow.ask("turn", *what, args.steps)

    def first_round(self, precisions: list[str], sides: list[str]) -> None:
        """Takes a turn of each, in which programs are traced and compiled.

        Raises:
            ValueError: If PyTorch's steps do not lead to our losses.
        """
        losses = {}
        for case in step_figures.cases(sides, precisions):
            began = time.monotonic()
            try:
                _, losses[case] = self.turn(case)
            except RuntimeError as error:
                if case.side != "compiled":
                    raise
                self.left_out.append(f"{case.name}: torch.compile fails")
                print(f"left out: {case.name}: {error}", flush=True)
                continue
            self.rates[case] = []
            seconds = time.monotonic() - began
            print(f"first turn of {case.name}: {seconds:.0f} s", flush=True)
        for precision in precisions:
            self.tensorflow.ask("product", precision)
            self.products[precision] = []
        if wrong := step_figures.differing(losses):
            raise ValueError("; ".join(wrong))

    def round(self) -> None:
        """Takes a turn of each, and notes the rates."""
        for case, rates in self.rates.items():
            seconds, _ = self.turn(case)
            rates.append(self.args.steps * self.args.batch_size / seconds)
        for precision, rates in self.products.items():
            rates.append(self.tensorflow.ask("product", precision))


def measure(args: argparse.Namespace) -> dict:
    """Returns all figures, as step.json keeps them, without the machine's.

    Args:
        args: Of the command line.

    Raises:
        ValueError: If PyTorch does not do what we do.
        RuntimeError: If a process fails.
    """
    left_out, sides, precisions = [], list(args.only), ["float32"]
    if step_figures.has_bfloat16(pathlib.Path("/proc/cpuinfo").read_text()):
        precisions.append("bfloat16")
    else:
        left_out.append("bfloat16: the processor has neither avx512_bf16 nor amx_bf16")
    if "compiled" in sides and not shutil.which(os.environ.get("CXX", "g++")):
        sides.remove("compiled")
        left_out.append("compiled: torch.compile needs g++, which is not installed")
    for line in left_out:
        print(f"left out: {line}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(args, str(pathlib.Path(folder, "weights.npz")))
        try:
            measurement.first_round(precisions, sides)
            for number in range(args.rounds):
                measurement.round()
                print(f"round {number + 1} of {args.rounds}", flush=True)
        finally:
            measurement.end()
    step_flops = {
        encoder: flops.of_step(1, args.image_size, NUM_CLASSES, encoder == "trained")
        for encoder in step_figures.ENCODERS
    }
    rates, products = measurement.rates, measurement.products
    return {
        "torch": measurement.torch_version,
        "left_out": left_out + measurement.left_out,
        "needed_flops_per_image": step_flops,
        "matrix_product_flops_per_second": products,
        "cases": step_figures.summary(rates, products, step_flops),
    }


def main() -> None:
    """Measures, prints the table, writes it where every side took part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="turns of each; one more is not counted")
    add("--steps", type=int, default=2, help="of a turn")
    add("--batch_size", type=int, default=64)
    add("--image_size", type=int, default=128, help="side, pixels, a multiple of 32")
    sides = list(step_figures.SIDES)
    about = "sides for a quick trial, whose figures are not kept"
    add("--name", default="step", help="of the file in benchmarks/results")
    add("--only", nargs="+", choices=sides, default=sides, help=about)
    args = parser.parse_args()
    if set(args.only) & set(step_figures.OF_TORCH) and not PYTHON.exists():
        parser.error("PyTorch is not installed; make .venv-torch/locked")
    try:
        found = measure(args)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    for precision, rates in found["matrix_product_flops_per_second"].items():
        rate = statistics.median(rates) / 1e9
        print(f"matrix product, {precision}: {rate:.0f} GFLOP/s")
    print(step_figures.table(found["cases"]))
    settings = vars(args)
    name = settings.pop("name")
    if settings.pop("only") != sides:
        return
    summary = {
        "machine": machine.facts(),
        "command": machine.shown(
            [sys.executable, "-m", "benchmarks.step", *sys.argv[1:]], {}
        ),
        "settings": settings,
        **found,
    }
    path = machine.RESULTS / f"{name}.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
