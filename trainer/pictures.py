"""Draws what a run learns: image | truth | prediction panels and its curves.

Letters: N examples, S side in pixels, C classes, T side of a drawn tile, H and W of
the whole picture.
"""

import io
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IGNORED = 255  # The mask value of a pixel that is not counted.

# Told apart with any kind of colour vision: Okabe and Ito 2008,
# https://jfly.uni-koeln.de/color/, in an order that sets neighbours apart.
COLOURS = np.frombuffer(
    bytes.fromhex("e69f00 0072b2 f0e442 009e73 cc79a7 56b4e9 d55e00 464646"), np.uint8
).reshape(8, 3)
WRONG = (214, 0, 110)
PAPER, INK, FAINT = "#ffffff", "#1e1e1e", "#6e6e6e"

TILE_MIN, TILE_MAX = 192, 512  # Pixels; in between an image keeps its own size.
GAP, MARGIN = 12, 20  # Pixels between things, and around the picture.
TEXT, SMALL = 17, 14  # Pixels, the two sizes of type.
NAME_MAX = 40  # Characters; what is longer is cut.


def palette(num_classes: int) -> np.ndarray:
    """Returns the colour (C, 3) uint8 of each class id, the same in every picture."""
    ids = np.arange(num_classes)[:, np.newaxis]
    turn, place = np.divmod(ids, len(COLOURS))
    # After the first eight the same hues come again: paler, then darker.
    towards, share = np.where(turn % 2, 255, 0), np.where(turn, 0.45, 0)
    colours = np.round(COLOURS[place[:, 0]] * (1 - share) + towards * share)
    # Then those of PASCAL VOC, whose bits count through the cube of colours.
    cube = sum((ids >> (3 * bit + np.arange(3)) & 1) << (7 - bit) for bit in range(3))
    return np.where(turn < 3, colours, cube).astype(np.uint8)


def panels(
    images: np.ndarray,
    masks: np.ndarray,
    predictions: np.ndarray | None,
    class_names: list[str],
) -> np.ndarray:
    """Returns one picture of all examples, a row each, under a legend and headings.

    The columns are image, truth, prediction, and the image in grey with the wrong
    pixels marked and their share below; without predictions only the first two.
    Ignored pixels are striped, and never wrong.

    Args:
        images: (N, S, S, 3) uint8.
        masks: (N, S, S) int class ids 0..C-1, or 255 for an ignored pixel.
        predictions: (N, S, S) int class ids 0..C-1, or None.
        class_names: C names.

    Returns:
        (H, W, 3) uint8.
    """
    colours = palette(len(class_names))
    headings = ["image", "truth", "prediction", "wrong pixels"]
    if predictions is None:
        headings = headings[:2]
    side = len(_fit(masks[0]))
    lefts = [MARGIN + column * (side + GAP) for column in range(len(headings))]
    width = lefts[-1] + side + MARGIN
    legend = _legend(colours, class_names, bool((masks == IGNORED).any()), width)
    top = legend.height + TEXT + GAP
    row_height = side + GAP + (0 if predictions is None else SMALL + GAP)
    height = top + len(images) * row_height - GAP + MARGIN
    canvas = Image.new("RGB", (width, height), PAPER)
    canvas.paste(legend)
    draw = ImageDraw.Draw(canvas)
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left, top - 9), heading, INK, _font(TEXT, "-Bold"), "ls")
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        y = top + row * row_height
        prediction = None if predictions is None else predictions[row]
        tiles = _tiles(image, mask, prediction, colours)
        for left, tile in zip(lefts, tiles, strict=True):
            canvas.paste(Image.fromarray(tile), (left, y))
        if prediction is not None:
            wrong = (prediction != mask)[mask != IGNORED]
            caption = f"{wrong.mean() if wrong.size else 0:.1%} of the pixels"
            draw.text((lefts[-1], y + side + 5), caption, FAINT, _font(SMALL), "lt")
    return np.asarray(canvas)


def curves(
    train: list[dict], evaluations: list[dict], loss: str = "cross_entropy"
) -> np.ndarray:
    """Returns a picture of the loss, and of the metrics, over the steps of a run.

    Args:
        train: Rows with `step` and `loss`; may be empty.
        evaluations: Rows with `step`, `val_loss`, `val_mean_iou` and
            `val_pixel_accuracy`; a value that is missing or None is left out. The
            row with the highest `val_mean_iou` is marked.
        loss: What was trained on; evaluation tells cross-entropy always.

    Returns:
        (H, W, 3) uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    losses, metrics = figure.subplots(1, 2)
    of_train, of_val, title = "train", "val", "loss, nats per pixel"
    if loss != "cross_entropy":
        of_train, of_val, title = f"train, {loss}", "val, cross_entropy", "loss"
    for axes, rows, key, label, colour, width in (
        (losses, train, "loss", of_train, "0.7", 1),
        (losses, evaluations, "val_loss", of_val, "#0072b2", 2),
        (metrics, evaluations, "val_pixel_accuracy", "pixel accuracy", "#009e73", 2),
        (metrics, evaluations, "val_mean_iou", "mean IoU", "#e69f00", 2),
    ):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if not points:
            continue
        (line,) = axes.plot(*zip(*points, strict=True), c=colour, lw=width, label=label)
        line.set(marker="o" if len(points) <= 60 else "", markersize=4)
        if key == "val_mean_iou":
            step, best = max(points, key=lambda point: point[1])
            label = f"best: {best:.4f} at step {step:,}"
            axes.plot(step, best, "*", markersize=15, color="0.15", label=label)
    last_step = max([1, *(row["step"] for row in [*train, *evaluations])])
    for axes, name in ((losses, title), (metrics, "val metrics")):
        axes.set_title(name, loc="left")
        axes.set(xlabel="step", xlim=(-0.02 * last_step, 1.02 * last_step))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def encode_png(picture: np.ndarray) -> bytes:
    """Returns the picture (H, W, 3) uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def _tiles(
    image: np.ndarray,
    mask: np.ndarray,
    prediction: np.ndarray | None,
    colours: np.ndarray,
) -> list[np.ndarray]:
    """Returns the tiles (T, T, 3) uint8 of one row of `panels`."""
    mask = _fit(mask)
    side = len(mask)
    image = np.asarray(
        Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    )
    ignored = (mask == IGNORED)[..., np.newaxis]
    truth = np.where(ignored, _stripes(side), colours.take(mask, axis=0, mode="clip"))
    if prediction is None:
        return [image, truth]
    prediction = _fit(prediction)
    grey = 110 + image.mean(axis=-1, keepdims=True) * (145 / 255)
    errors = np.where((prediction != mask)[..., np.newaxis], WRONG, grey)
    errors = np.where(ignored, _stripes(side), errors).astype(np.uint8)
    return [image, truth, colours[prediction], errors]


def _fit(ids: np.ndarray) -> np.ndarray:
    """Returns class ids (S, S) as (T, T), by nearest neighbour."""
    times = -(-TILE_MIN // len(ids))
    every = -(-len(ids) // TILE_MAX)
    return ids.repeat(times, axis=0).repeat(times, axis=1)[::every, ::every]


def _stripes(side: int) -> np.ndarray:
    """Returns a square (side, side, 3) uint8 in the pattern of ignored pixels."""
    x = np.arange(side)
    dark = (x + x[:, np.newaxis]) // 4 % 2
    return np.stack([245 - 40 * dark] * 3, axis=-1).astype(np.uint8)


def _legend(
    colours: np.ndarray, names: list[str], ignored: bool, width: int
) -> Image.Image:
    """Returns swatches and names in as many columns as fit the width."""
    font = _font(TEXT)
    swatches = [np.tile(colour, (TEXT, TEXT, 1)) for colour in colours]
    if ignored:
        swatches, names = [*swatches, _stripes(TEXT)], [*names, "ignored"]
    names = [n if len(n) <= NAME_MAX else f"{n[: NAME_MAX - 1]}…" for n in names]
    column = max(int(font.getlength(name)) for name in names) + TEXT + 3 * GAP
    columns = max(1, (width - 2 * MARGIN + 2 * GAP) // column)
    line = TEXT + 9
    height = MARGIN + -(-len(names) // columns) * line + GAP
    legend = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(legend)
    for place, (swatch, name) in enumerate(zip(swatches, names, strict=True)):
        x, y = MARGIN + place % columns * column, MARGIN + place // columns * line
        legend.paste(Image.fromarray(swatch), (x, y))
        draw.text((x + TEXT + 8, y + TEXT - 3), name, INK, font, "ls")
    return legend


def _font(size: int, weight: str = "") -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, which comes with matplotlib and has most alphabets."""
    import matplotlib

    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / f"DejaVuSans{weight}.ttf", size)
