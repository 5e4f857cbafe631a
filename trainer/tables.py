"""The figures of a report page as HTML: classes, confusion, time.

Letters: C classes.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from trainer import metrics, pictures

CONFUSION_MAX = 16  # Classes that the matrix shows; more could not be read.
# What seconds went to, in words, and its colour; see `clock.USES`.
USES = {
    "stepping": ("training steps", "#0b62b0"),
    "waiting_for_data": ("waiting for data", "#e69f00"),
    "starting": ("starting", "#8a939d"),
    "compiling": ("compiling, first step", "#56b4e9"),
    "evaluating": ("evaluating", "#009e73"),
    "saving": ("saving", "#cc79a7"),
    "exporting": ("exporting", "#6a51a3"),
    "lost_to_restarts": ("lost to restarts", "#d55e00"),
}
OTHER_COLOUR = "#767676"


def text(value: Any) -> str:
    """Returns a value as HTML shows it; nothing in it is taken for markup."""
    return html.escape(str(value), quote=True)


def section(title: str, content: str, note: str = "") -> str:
    """Returns a part of a page under its title, HTML all of them."""
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{note}{content}</section>"


def figure(value: float | None) -> str:
    """Returns a fraction or a loss with 4 digits, a dash for one that there is not."""
    return "–" if value is None else f"{value:.4f}"


def name(of: str) -> str:
    """Returns a class's name, cut where it is long; whole when pointed at."""
    return f'<span class="name" title="{text(of)}">{text(of)}</span>'


def swatches(class_names: Sequence[str]) -> list[str]:
    """Returns a square in the colour of each class, the same as in every picture."""
    return [
        f'<i class="swatch" style="color:#{bytes(colour).hex()}"></i>'
        for colour in pictures.palette(len(class_names))
    ]


def classes(
    columns: Mapping[str, Mapping[str, float | None]], class_names: Sequence[str]
) -> str:
    """Returns the table of IoU and Dice of each class.

    Args:
        columns: Metrics by the name of their split, as `metrics.summary` names them;
            the first one's IoU is drawn as bars too.
        class_names: C names.
    """
    splits = "".join(
        f'<th colspan="2" scope="colgroup">{text(s)}</th>' for s in columns
    )
    head = '<th scope="col">IoU</th><th scope="col">Dice</th>' * len(columns)
    body = []
    for of, swatch in zip(class_names, swatches(class_names), strict=True):
        found = [
            values.get(f"{metric}/{of}")
            for values in columns.values()
            for metric in ("iou", "dice")
        ]
        body.append(_row(f"{swatch}{name(of)}", found, found[0]))
    means: list[float | None] = []
    for values in columns.values():
        dice = [values.get(f"dice/{of}") for of in class_names]
        means += [values.get("mean_iou"), metrics.mean(dice)]
    body.append(_row("mean", means, means[0], look=' class="mean"'))
    return (
        '<div class="wide"><table class="classes"><thead><tr><td></td><td class="bar">'
        f'</td>{splits}</tr><tr><th scope="col">class</th><td class="bar"></td>{head}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _row(
    head: str, found: Sequence[float | None], bar: float | None, look: str = ""
) -> str:
    cells = "".join(f"<td>{figure(value)}</td>" for value in found)
    return (
        f'<tr{look}><th scope="row">{head}</th><td class="bar">'
        f'<i style="--share:{bar or 0:.4f}"></i></td>{cells}</tr>'
    )


def confusion(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Returns the matrix of the shares of each true class; counts when pointed at.

    Args:
        counts: (C, C) pixels, true class by predicted class.
        class_names: C names. Of more than `CONFUSION_MAX` those with most pixels are
            shown; shares are of all.
    """
    totals = [sum(row) for row in counts]
    by_size = sorted(range(len(totals)), key=lambda id: -totals[id])
    kept = sorted(by_size[:CONFUSION_MAX])
    body = []
    for true in kept:
        cells = []
        for given in kept:
            count, total = counts[true][given], totals[true]
            share = count / total if total else 0.0
            about = (
                f"{count:,} of {total:,} pixels of {class_names[true]} were given "
                f"{class_names[given]}"
            )
            shown = f"{share:.1%}" if total else "–"
            cells.append(
                f'<td style="--share:{share:.4f}" title="{text(about)}">{shown}</td>'
            )
        body.append(
            f'<tr><th scope="row">{name(class_names[true])}</th>{"".join(cells)}</tr>'
        )
    head = "".join(f'<th scope="col">{name(class_names[id])}</th>' for id in kept)
    left_out = len(totals) - len(kept)
    note = (
        f'<p class="note">The {len(kept)} classes with most pixels; {left_out} more are '
        "in result.json.</p>"
        if left_out
        else ""
    )
    return (
        '<div class="wide"><table class="confusion"><thead><tr><th>true, given</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def time(seconds_of: Mapping[str, float]) -> str:
    """Returns the bar of what became of a run's time, and its key."""
    total = sum(seconds_of.values()) or 1.0
    known = [use for use in USES if use in seconds_of]
    bar, keys = [], []
    for use in [*known, *(use for use in seconds_of if use not in USES)]:
        words, colour = USES.get(use, (use.replace("_", " "), OTHER_COLOUR))
        share = seconds_of[use] / total
        told = f"{words}: {seconds_of[use]:,.1f} s, {share:.1%}"
        if share > 0:
            bar.append(
                f'<i style="--share:{share:.4f};--colour:{colour}" title="{text(told)}">'
                "</i>"
            )
        keys.append(
            f'<div><i class="swatch" style="color:{colour}"></i>{text(words)}'
            f"<b>{seconds_of[use]:,.1f} s · {share:.1%}</b></div>"
        )
    return (
        f'<div class="time">{"".join(bar)}</div>'
        f'<div class="time-keys">{"".join(keys)}</div>'
    )
