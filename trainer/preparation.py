"""The settings of trainer.prepare: flag, default, help, check. No TensorFlow here."""

import dataclasses
import os
import re

from trainer import config, flags
from trainer.flags import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """What to make a data set of, and how; checked when made."""

    # fmt: off
    images: str | None = setting("Pictures", None, "Folder of the images; needed.")
    masks: str | None = setting("Pictures", None, "Folder of the masks, PNG, GIF, TIFF or BMP, each named like its image; needed.")
    layout: str = setting("Pictures", "folders", "carvana: masks end in _mask, black is background and white is car; voc: the classes of Pascal VOC, images without mask left out.", choices=("folders", "carvana", "voc"))
    mask_suffix: str | None = setting("Pictures", None, "What a mask's name has after that of its image, such as _mask.")
    turn_images: bool = setting("Pictures", False, "Turn images as EXIF says: for masks that are upright.")

    class_names: tuple[str, ...] | None = setting("Classes", None, "Names of classes 0, 1, ..., separated by commas; those of colors, else class_0, class_1, ... when absent.")
    colors: str | None = setting("Classes", None, "File of a class map: lines R,G,B NAME; the name ignored is for pixels that count nowhere.")
    mask_offset: int = setting("Classes", 0, "Added to a mask's id to get the class id.", low=-255, high=255)
    ignore_id: int = setting("Classes", 255, "Mask id of pixels that count nowhere; stored as 255.", low=0, high=65535)

    val_fraction: float = setting("Splits", 0.0, "Share for validation; when 0, training cuts its own.", low=0, high=0.9)
    test_fraction: float = setting("Splits", 0.1, "Share for test.", low=0, high=0.9)
    train_list: str | None = setting("Splits", None, "File that names the images of train, one a line; instead of fractions.")
    val_list: str | None = setting("Splits", None, "File that names the images of validation.")
    test_list: str | None = setting("Splits", None, "File that names the images of test.")
    group: str | None = setting("Splits", None, "Regular expression on an image's name; what it finds (its first parenthesis, if any) is a group, which no two splits share.")
    seed: int = setting("Splits", 0, "Seed of the splits and of the order.", low=0, high=2**31 - 1)

    data_dir: str | None = setting("Output", None, "TFDS directory to write to, local or gs://; needed.")
    name: str | None = setting("Output", None, "Name of the data set, lower case; needed.")
    shards: int | None = setting("Output", None, "Files of each split; as its size asks for when absent.", low=1, high=99999)
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        for name in ("images", "masks", "data_dir", "name"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be given: --{name}=...")
        for name in ("images", "masks"):
            path = getattr(self, name)
            if not os.path.isdir(path):
                raise ValueError(f"{name} must be a folder on this machine, got {path}")
        same = os.path.realpath(self.images or "") == os.path.realpath(self.masks or "")
        if same and not self.mask_suffix and self.layout != "carvana":
            raise ValueError(
                f"masks must be another folder than images, got {self.masks} for both; "
                "or say how masks' names end: --mask_suffix=..."
            )
        for name in ("colors", "train_list", "val_list", "test_list"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise ValueError(f"{name} must be a file, got {path}: there is none")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name or ""):
            raise ValueError(
                "name must be of lower-case letters, digits and _, a letter first, got "
                f"{self.name!r}"
            )
        self._check_splits()
        if self.class_names is not None:  # By the rules of the run that will use them.
            config.Config(class_names=self.class_names)

    def _check_splits(self) -> None:
        if (self.val_list or self.test_list) and not self.train_list:
            raise ValueError("train_list must be given with other lists, got none")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                "val_fraction and test_fraction must leave examples to train, got "
                f"{self.val_fraction:g} and {self.test_fraction:g}"
            )
        if self.group is None:
            return
        try:
            re.compile(self.group)
        except re.error as error:
            raise ValueError(
                f"group must be a regular expression, got {self.group!r}: {error}"
            ) from None
        if not (self.val_list if self.train_list else self.val_fraction):
            raise ValueError(
                "group needs a validation split, which training would cut without "
                "regard to groups; give --val_fraction or --val_list"
            )
