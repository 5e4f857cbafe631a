"""What `benchmarks.step` measures, and the figures and the table made of it."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# What the table calls each side, and the precisions that it has.
SIDES = {
    "ours": "ours",
    "fit": "tutorial, `Model.fit`",
    "eager": "PyTorch, eager",
    "channels_last": "PyTorch, eager, channels_last",
    "compiled": "PyTorch, compiled, channels_last",
}
OF_TORCH = ("eager", "channels_last", "compiled")
ENCODERS = ("frozen", "trained")
PRECISIONS = ("float32", "bfloat16")
# Of the loss after the first turn, PyTorch's less ours over ours.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}
HEADINGS = (
    *("step", "encoder", "precision", "images/s", "GFLOP/s", "of the matrix product"),
    *("over `fit`, float32", "ours over it"),
)


class Case(NamedTuple):
    """What is measured."""

    side: str
    encoder: str
    precision: str

    @property
    def name(self) -> str:
        """Its name in step.json."""
        return " ".join(self)


Rates = Mapping[Case, Sequence[float]]


def has_bfloat16(cpuinfo: str) -> bool:
    """Returns whether the processor multiplies bfloat16, of /proc/cpuinfo."""
    return bool({"avx512_bf16", "amx_bf16"} & set(cpuinfo.split()))


def cases(sides: Sequence[str], precisions: Sequence[str]) -> list[Case]:
    """Returns what is measured, like beside like."""
    found = itertools.starmap(Case, itertools.product(sides, ENCODERS, precisions))
    # Not a variant that anyone would choose.
    wanted = [c for c in found if (c.side, c.precision) != ("eager", "bfloat16")]
    return sorted(
        wanted, key=lambda c: (ENCODERS.index(c.encoder), PRECISIONS.index(c.precision))
    )


def over(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median over the rounds of one rate over the other."""
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def summary(
    rates: Rates, products: Mapping[str, Sequence[float]], step_flops: Mapping[str, int]
) -> dict[str, dict]:
    """Returns the figures of each case, by its name.

    Args:
        rates: Images/s of each round.
        products: FLOP/s of the matrix product in each round, by precision.
        step_flops: What an image needs, by encoder.
    """
    found = {}
    for case, mine in rates.items():
        needed = [step_flops[case.encoder] * rate for rate in mine]
        fit = rates.get(Case("fit", case.encoder, "float32"))
        ours = None if case.side == "ours" else rates.get(case._replace(side="ours"))
        found[case.name] = {
            **case._asdict(),
            "images_per_second": statistics.median(mine),
            "flops_per_second": statistics.median(needed),
            "of_the_matrix_product": over(needed, products[case.precision]),
            "over_fit_float32": fit and over(mine, fit),
            "ours_over_it": ours and over(ours, mine),
            "rounds": list(mine),
        }
    return found


def table(found: Mapping[str, dict]) -> str:
    """Returns the figures of `summary` as a table of Markdown."""

    def times(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.2f}"

    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for row in found.values():
        lines.append(
            (
                *(SIDES[row["side"]], row["encoder"], row["precision"]),
                f"{row['images_per_second']:.1f}",
                f"{row['flops_per_second'] / 1e9:.0f}",
                f"{row['of_the_matrix_product']:.0%}",
                times(row["over_fit_float32"]),
                times(row["ours_over_it"]),
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def differing(losses: Mapping[Case, float | None]) -> list[str]:
    """Returns the cases of PyTorch whose loss after the first turn is not ours."""
    found = []
    for case, loss in losses.items():
        ours = losses.get(case._replace(side="ours"))
        if case.side in OF_TORCH and ours is not None:
            assert loss is not None
            # So written, a loss that is not a number differs too.
            if not abs(loss - ours) <= LOSS_TOLERANCE[case.precision] * ours:
                found.append(f"{case.name}: a loss of {loss:.4f}, ours {ours:.4f}")
    return found
