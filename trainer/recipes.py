"""Recipes: settings to start from, in place of the defaults. No TensorFlow here."""

import dataclasses
from typing import Any

from trainer.flags import setting

# The defaults are TensorFlow's tutorial. The rest was chosen on validation data only,
# of Oxford-IIIT Pet: `benchmarks.quality` shows what it comes to.
RECIPES: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "best": dict(
        train_encoder=True,
        train_encoder_from=8,
        decoder="light",
        image_size=256,
        train_image_size=224,
        crop_scale_min=0.55,
        brightness=0.1,
        contrast=0.2,
        saturation=0.2,
        batch_size=32,
        loss="cross_entropy+lovasz",
        optimizer="adamw",
        encoder_learning_rate=3e-4,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=200,
        ema_decay=0.995,
    ),
}

# A recipe's setting that is left out where a flag says other than what it needs.
NEEDS: dict[str, tuple[str, Any]] = {
    "encoder_learning_rate": ("train_encoder", True),
    "train_encoder_from": ("train_encoder", True),
    "train_image_size": ("image_size", 256),
    "weight_decay": ("optimizer", "adamw"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """The recipe of a run."""

    recipe: str = setting(
        "Recipe",
        "tutorial",
        "Settings to start from; a flag given beside it wins. tutorial: the defaults "
        "below, those of TensorFlow's tutorial; best: better ones, chosen on validation "
        "data.",
        choices=tuple(RECIPES),
    )
