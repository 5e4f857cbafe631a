"""Examples to look at: the first of a split and its worst, small enough for a page.

Letters: S side of an image in pixels, C classes.
"""

import base64
import dataclasses
import heapq
import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from trainer import metrics, overlay, pictures, tables

FIRST, WORST = 6, 6  # Examples of each kind.
MOST_LOOKED_AT = 1000  # Examples among which the worst are found.
MOST_SECONDS = 20.0  # In which they are.
SIDE_MAX = 256  # Pixels; a larger picture is made smaller.

# Image (S, S, 3) uint8; mask (S, S) uint8, a class id or 255, ignored; predicted class
# ids (S, S) uint8.
Seen = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Example:
    """An example as a page shows it; its pictures are data URIs."""

    place: int  # In the split, in stored order, from 0.
    mean_iou: float | None  # Of this example alone; None where no pixel counts.
    photograph: str
    truth: str  # See-through where pixels are ignored.
    prediction: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a page shows of a split."""

    first: list[Example]
    worst: list[Example]  # Those of the lowest mean IoU, the worst first.
    looked_at: int  # Examples among which they were found.
    total: int  # Examples of the split.


def choose(seen: Iterable[Seen], num_classes: int, total: int) -> Shown:
    """Returns the examples to show; holds no more of them than these.

    Args:
        seen: Examples with their predictions, in stored order.
        num_classes: C.
        total: Examples of the split; `seen` may end before.
    """
    first: list[tuple[int, float | None, Seen]] = []
    looked_at = 0

    def judged() -> Iterator[tuple[int, float, Seen]]:
        """Gives those that have a mean IoU; keeps the first, counts all."""
        nonlocal looked_at
        for place, one in enumerate(seen):
            looked_at = place + 1
            confusion = metrics.confusion_matrix(*one[1:], num_classes).numpy()
            mean_iou = metrics.mean_iou(confusion)
            if place < FIRST:
                first.append((place, mean_iou, one))
            if mean_iou is not None:
                yield place, mean_iou, one

    # Of two alike the earlier one; pictures are not compared.
    worst = heapq.nsmallest(WORST, judged(), key=lambda kept: (kept[1], kept[0]))
    colours = pictures.palette(num_classes)
    return Shown(
        first=[_example(*kept, colours) for kept in first],
        worst=[_example(*kept, colours) for kept in worst],
        looked_at=looked_at,
        total=total,
    )


def compared(examples: Sequence[Example], class_names: Sequence[str]) -> str:
    """Returns photographs under prediction and truth, with a slider between the two."""
    legend = "".join(
        f"<span>{swatch}{tables.name(of)}</span>"
        for swatch, of in zip(tables.swatches(class_names), class_names, strict=True)
    )
    figures = "".join(
        f'<figure {_addresses(one)}><div class="picture photograph compare">'
        '<i class="truth"></i><i class="prediction"></i>'
        '<input type="range" min="0" max="100" step="any" value="50" '
        f'aria-label="Prediction and truth of example {one.place}"></div>'
        f'<div class="sides"><b>prediction</b><span>example {one.place}, mean IoU '
        f"{tables.figure(one.mean_iou)}</span><b>truth</b></div></figure>"
        for one in examples
    )
    return f'<div class="legend">{legend}</div><div class="gallery">{figures}</div>'


def side_by_side(examples: Sequence[Example]) -> str:
    """Returns photographs, the same under the truth, and under the prediction."""
    figures = []
    for one in examples:
        tiles = "".join(
            f'<div><div class="picture photograph" role="img" aria-label="{of}, example '
            f'{one.place}"><i class="{of}"></i></div><span>{of}</span></div>'
            for of in ("photograph", "truth", "prediction")
        )
        figures.append(
            f'<figure {_addresses(one)}><div class="three">{tiles}</div><div class="sides">'
            f"<span>example {one.place}</span><b>mean IoU {tables.figure(one.mean_iou)}</b>"
            "</div></figure>"
        )
    return f'<div class="worst">{"".join(figures)}</div>'


def _addresses(one: Example) -> str:
    """Returns the style that tells a figure's parts where their pictures are."""
    return (
        f'style="--photograph:url({one.photograph});--truth:url({one.truth});'
        f'--prediction:url({one.prediction})"'
    )


def data_uri(content: bytes, kind: str) -> str:
    """Returns a file as an address that holds it; `kind` is its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _example(
    place: int, mean_iou: float | None, seen: Seen, colours: np.ndarray
) -> Example:
    image, mask, prediction = seen
    every = -(-len(image) // SIDE_MAX)
    photograph = Image.fromarray(image)
    if every > 1:
        side = -(-len(image) // every)
        photograph = photograph.resize((side, side), Image.Resampling.LANCZOS)
    truth, given = (
        _layer(ids[::every, ::every], colours) for ids in (mask, prediction)
    )
    jpeg = data_uri(overlay.jpeg(photograph), "image/jpeg")
    return Example(place, mean_iou, jpeg, truth, given)


def _layer(ids: np.ndarray, colours: np.ndarray) -> str:
    """Returns class ids (S, S) as a PNG in the colours of their classes."""
    unseen = len(colours)
    ids = np.where(ids == pictures.IGNORED, unseen, ids).astype(np.uint8)
    layer = overlay.indexed(ids, np.concatenate([colours, colours[:1]]))
    file = io.BytesIO()
    layer.save(file, "PNG", optimize=True, transparency=unseen)
    return data_uri(file.getvalue(), "image/png")
