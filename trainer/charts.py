"""Curves as HTML: lines in SVG that fill any width, numbers beside them in plain text.

An SVG that grows with its page would shrink its text on a phone.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

POINTS_MAX = 400  # Of a line; where there are more, the mean of neighbours.
DOTS_MAX = 40  # Points that are marked one by one.
TICKS = 5  # About so many on an axis.
SIDE = 1000  # Of the SVG's own square, which is stretched.

Points = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    points: Points  # (step, value), by step; what is not finite is left out.
    look: str  # Its CSS class.


def of_run(rows: Sequence[dict], best_step: int, loss: str) -> str:
    """Returns the charts of loss, metrics and, where it changes, learning rate.

    Args:
        rows: Those of metrics.jsonl.
        best_step: Of the best evaluation.
        loss: What was trained on; validation tells cross-entropy always.
    """
    train, evaluations = (
        [row for row in rows if row["kind"] == kind] for kind in ("train", "eval")
    )
    of_train, of_val, unit = "training", "validation", "nats per pixel"
    if loss != "cross_entropy":
        of_train, of_val, unit = f"training, {loss}", "validation, cross_entropy", ""
    losses = [
        Line(of_train, points(train, "loss"), "one"),
        Line(of_val, points(evaluations, "val_loss"), "two"),
    ]
    metrics = [
        Line("mean IoU", points(evaluations, "val_mean_iou"), "two"),
        Line("pixel accuracy", points(evaluations, "val_pixel_accuracy"), "three"),
    ]
    shown = [
        chart("Loss", unit, losses, best_step),
        chart("Validation", "shares, 0 to 1", metrics, best_step),
    ]
    rates = points(train, "learning_rate")
    if len({rate for _, rate in rates}) > 1:
        line = Line("learning rate", rates, "four")
        shown.append(chart("Learning rate", "", [line], best_step))
    return f'<div class="charts">{"".join(shown)}</div>'


def points(rows: Sequence[dict], key: str) -> Points:
    """Returns (step, value) of the rows that have a finite value of that name."""
    values = [(row["step"], row.get(key)) for row in rows]
    return [
        (step, value)
        for step, value in values
        if value is not None and math.isfinite(value)
    ]


def chart(title: str, unit: str, lines: list[Line], best_step: int) -> str:
    """Returns a figure of lines over the steps of a run.

    Args:
        title: Of the figure.
        unit: Of its values.
        lines: With points or without.
        best_step: Marked by an upright.
    """
    lines = [dataclasses.replace(x, points=_thinned(x.points)) for x in lines]
    drawn = [line for line in lines if line.points]
    keys = "".join(
        f'<span><i class="{x.look}"></i>{html.escape(x.name)}</span>' for x in drawn
    )
    head = (
        f"<figcaption><b>{html.escape(title)}</b> <small>{html.escape(unit)}</small>"
        f'<span class="keys">{keys}</span></figcaption>'
    )
    if not drawn:
        return f'<figure class="chart">{head}<p>No finite value.</p></figure>'
    steps = [step for line in drawn for step, _ in line.points]
    values = [value for line in drawn for _, value in line.points]
    across = ticks(0, max(1, *steps, best_step), integers=True)
    up = ticks(min(values), max(values))
    right = max(across[-1], *steps)
    low, high = up[0], up[-1]

    def x(step: float) -> float:
        return round(step / right * SIDE, 1)

    def y(value: float) -> float:
        return round((high - value) / (high - low) * SIDE, 1)

    shapes = [f'<path class="grid" d="M0 {y(v)}H{SIDE}"/>' for v in up]
    shapes.append(f'<path class="best" d="M{x(best_step)} 0V{SIDE}"/>')
    for line in drawn:
        places = [(x(step), y(value)) for step, value in line.points]
        path = "L".join(f"{px} {py}" for px, py in places)
        shapes.append(f'<path class="{line.look}" d="M{path}"/>')
        if len(places) <= DOTS_MAX:
            shapes += [
                f'<path class="dot {line.look}" d="M{px} {py}h0"><title>'
                f"{html.escape(line.name)} at step {step:,.0f}: {value:.4g}</title></path>"
                for (px, py), (step, value) in zip(places, line.points, strict=True)
            ]
    numbers = [
        *(f'<span class="y" style="top:{y(v) / 10}%">{label(v)}</span>' for v in up),
        *(
            f'<span class="x" style="left:{x(s) / 10}%">{whole(s)}</span>'
            for s in across
        ),
    ]
    at = x(best_step) / 10
    numbers.append(f'<span class="best" style="left:{at}%">best</span>')
    named = html.escape(f"{title} over steps", quote=True)
    return (
        f'<figure class="chart">{head}<div class="plot"><svg role="img" '
        f'aria-label="{named}" viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none">'
        f'{"".join(shapes)}</svg>{"".join(numbers)}</div><p class="axis">step</p></figure>'
    )


def ticks(low: float, high: float, integers: bool = False) -> list[float]:
    """Returns round numbers, evenly apart, the first and last around the range.

    Args:
        low: Start of the range.
        high: Its end.
        integers: Whether they are to be whole numbers.
    """
    span = high - low
    if span <= 1e-12 * abs(high):  # Too near for numbers between them.
        span = abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    every = next(m * power for m in (1, 2, 5, 10) if m * power * TICKS >= span * 0.99)
    if integers:
        every = max(1.0, every)
    first, last = math.floor(low / every + 1e-9), math.ceil(high / every - 1e-9)
    last = max(last, first + 1)
    return [n * every for n in range(first, last + 1)]


def label(value: float) -> str:
    """Returns a number as an axis shows it."""
    small = value and abs(value) < 1e-3
    if small:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{round(value, 6):g}"


def whole(number: float) -> str:
    """Returns a whole number as an axis shows it, short enough for a phone."""
    for times, letter in ((10**6, "M"), (10**3, "k")):
        if number >= 10 * times or letter == "M" and number >= times:
            return f"{number / times:g}{letter}"
    return f"{number:,.0f}"


def _thinned(line: Points) -> Points:
    """Returns at most `POINTS_MAX` points, each the mean of its neighbours."""
    every = -(-len(line) // POINTS_MAX)
    if every <= 1:
        return line
    groups = [line[i : i + every] for i in range(0, len(line), every)]
    return [
        (group[-1][0], sum(value for _, value in group) / len(group))
        for group in groups
    ]
