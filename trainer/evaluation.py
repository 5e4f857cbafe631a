"""What trainer.evaluate is asked for, and what it calls that; no TensorFlow here."""

import dataclasses
import re

from trainer import flags
from trainer.flags import setting

SIDE = "[1-9][0-9]{0,3}"  # Pixels, in digits as they stand in names of files.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to evaluate, and how; checked when made."""

    # fmt: off
    job_dir: str | None = setting("Model", None, "Of the run whose model it is, local or gs://; needed.")
    checkpoint: str = setting("Model", "best", "best: the one that validation chose; latest: the newest.", choices=("best", "latest"))

    data_dir: str | None = setting("Examples", None, "Where the data set lies now, local or gs://; where the run found it when absent.")
    split: str = setting("Examples", "test", "train, val and test as the run took them, val being what it held out; or the name of another stored split.")
    limit_examples: int | None = setting("Examples", None, "Evaluate on so many examples only, the first of each shard.", low=1)

    at: str = setting("Looking", "model", "Size at which pixels are counted. model: that of the model, as in training; original: each example's own; or the side of a square, pixels, at which models of other sizes are compared.")
    tta: str = setting("Looking", "none", "flip: the mean over each image and its mirror image.", choices=("none", "flip"))
    window: str = setting("Looking", "whole", "whole: all of an image at the model's size; slide: window by window, unscaled, with --at=original.", choices=("whole", "slide"))
    overlap: float = setting("Looking", 0.5, "Share of a window that its neighbour covers too, at least; with --window=slide.", low=0, high=0.9)
    batch_size: int = setting("Looking", 16, "Images, or windows, at once; no figure depends on it.", low=1)

    output_dir: str | None = setting("Output", None, "Where to write, local or gs://; job_dir when absent.")
    worst: int = setting("Output", 8, "Examples to draw, those of the lowest mean IoU; 0 draws none.", low=0, high=64)
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        if self.job_dir is None:
            raise ValueError("job_dir must be given: --job_dir=...")
        if self.at not in ("model", "original") and not re.fullmatch(SIDE, self.at):
            raise ValueError(
                "at must be model, original or a side of 1 to 9999 pixels, got "
                f"{self.at!r}; leave it out to count as in training"
            )
        if self.window == "slide" and self.at != "original":
            raise ValueError(
                f"window must be whole with --at={self.at}, where an image is one window, "
                "got slide; add --at=original"
            )
        if self.window == "whole" and self.overlap != Evaluation.overlap:
            raise ValueError(
                f"overlap must be given with --window=slide, got {self.overlap} with "
                "whole; add --window=slide --at=original, or leave it out"
            )


def name(settings: Evaluation) -> str:
    """Returns what an evaluation is called: its split, and all that is not as usual."""
    parts = ["evaluation", settings.split]
    usual = Evaluation(job_dir=settings.job_dir)
    for field in ("checkpoint", "at", "tta", "window"):
        if getattr(settings, field) != getattr(usual, field):
            parts.append(getattr(settings, field))
    if settings.window == "slide" and settings.overlap != usual.overlap:
        parts.append(f"overlap{settings.overlap:g}")
    if settings.limit_examples:
        parts.append(f"first{settings.limit_examples}")
    return "-".join(parts)
