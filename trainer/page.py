"""The report page of a run: one HTML file that asks nothing of anybody.

Its pictures and curves are in it. What people wrote, such as names of classes, is text
on it and never markup; a policy in its head lets no other script run and nothing load.
"""

import base64
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from trainer import charts, colophon, gallery, tables
from trainer.tables import figure, section, text

ASSETS = pathlib.Path(__file__).parent / "assets"
PRESENT = ("report.css", "report.js")
# What ended a run, told where it was not its last step.
STOPPED = {
    "max_minutes": "stopped by --max_minutes",
    "early_stopping_evals": "stopped by --early_stopping_evals",
}


def render(
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    shown: gallery.Shown | None,
    *,
    loss: str,
    job_dir: str,
    log_dir: str,
    checkpoint: str,
) -> str:
    """Returns the page.

    Args:
        config: What config.json holds.
        result: What result.json will hold.
        rows: Those of metrics.jsonl.
        shown: Examples of the split of `result["confusion"]`; none when absent.
        loss: What was trained on, in words; validation tells cross-entropy always.
        job_dir: Where the run wrote.
        log_dir: Where its events are.
        checkpoint: Path of the best.
    """
    css, script = ((ASSETS / file).read_text(encoding="utf-8") for file in PRESENT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    dataset = config["dataset"]
    title = f"{dataset['name']} {dataset['version']}"
    sections = [
        _summary(config, result, title),
        section("Curves", charts.of_run(rows, result["best"]["step"], loss)),
        _pair(*_classes(result)),
        *_examples(result, shown),
        section("Where the time went", tables.time(result["seconds_of"])),
        colophon.settings(config["settings"]),
        _pair(
            colophon.files(job_dir, log_dir, checkpoint), colophon.provenance(config)
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,"><title>{text(title)}: report</title>\n'
        f"<style>\n{css}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + f"\n</main><script>{script}</script></body></html>\n"
    )


def _pair(left: str, right: str) -> str:
    """Returns two parts side by side, where there is room."""
    return f'<div class="pair">{left}{right}</div>'


def judged(result: Mapping[str, Any]) -> tuple[str, Mapping[str, float | None]]:
    """Returns the split that a run is reported on, and its metrics: test if there is."""
    if result["test"]:
        return "test", result["test"]
    return "validation", _validation(result["best"])


def _validation(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        metric.removeprefix("val_"): value
        for metric, value in evaluation.items()
        if metric.startswith("val_")
    }


def _summary(config: Mapping[str, Any], result: Mapping[str, Any], title: str) -> str:
    split, found = judged(result)
    dataset, best = config["dataset"], result["best"]["step"]
    how = STOPPED.get(result["stopped_by"], "trained to its end")
    examples = [
        f"{dataset['train_examples']:,} examples to train on",
        f"{dataset['val_examples']:,} to validate",
    ]
    if result["test"]:
        examples.append(f"{result['confusion']['examples']:,} to test")
    speed = result.get("train_images_per_second")
    tiles = [
        (figure(found["mean_iou"]), f"mean IoU, {split}"),
        (figure(found["pixel_accuracy"]), f"pixel accuracy, {split}"),
        (figure(found.get("loss")), f"cross-entropy, {split}"),
        (_minutes(result["seconds"]), "in all"),
        (f"{speed:,.1f}" if speed else "–", "images/s, training"),
        (f"{result['goodput']:.0%}", "of it in training steps"),
    ]
    shown = "".join(
        f"<div><b>{value}</b><span>{of}</span></div>" for value, of in tiles
    )
    settings = config["settings"]
    side = f"{settings['image_size']} pixels a side"
    if settings.get("train_image_size"):
        side += f", {settings['train_image_size']} in training"
    return (
        f'<header><p class="kind">Training report</p><h1>{text(title)}</h1>'
        f'<p class="lead">Step {best:,} of '
        f"{result['step']:,} was the best by "
        f"{text(settings['best_metric'])}; {how}, {result['epoch']:,.1f} "
        f"epochs. {', '.join(examples)}, {side}.</p>"
        f'<div class="tiles">{shown}</div></header>'
    )


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.1f} min"
    hours, left = divmod(round(minutes), 60)
    return f"{hours} h {left} min"


def _classes(result: Mapping[str, Any]) -> tuple[str, str]:
    names, counts = (result["confusion"][key] for key in ("class_names", "counts"))
    columns = {"validation": _validation(result["best"])}
    if result["test"]:
        columns = {"test": result["test"], **columns}
    split, _ = judged(result)
    note = (
        f"Share of the pixels of each true class, on {split}. Point at one for counts."
    )
    return (
        section("Classes", tables.classes(columns, names)),
        section("Confusion", tables.confusion(counts, names), note),
    )


def _examples(result: Mapping[str, Any], shown: gallery.Shown | None) -> list[str]:
    if shown is None:
        return []
    split, _ = judged(result)
    names = result["confusion"]["class_names"]
    first = f"The first examples of {split}. Drag across a photograph to compare."
    among = f"all {shown.total:,} examples"
    if shown.looked_at < shown.total:
        among = f"the first {shown.looked_at:,} of {shown.total:,} examples"
    worst = (
        f"Those of the lowest mean IoU among {among} of {split}, over the classes that "
        "each has or is given; counted from 0, as they are stored."
    )
    return [
        section("Predictions", gallery.compared(shown.first, names), first),
        section("Worst examples", gallery.side_by_side(shown.worst), worst),
    ]
