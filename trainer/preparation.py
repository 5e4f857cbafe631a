"""The settings of trainer.prepare: flag, default, help, check. No TensorFlow here."""

import dataclasses
import os
import re

from trainer import config, flags, layouts
from trainer.flags import setting

_LAYOUTS = "".join(
    f"\n        {name}: {expects}" for name, expects in layouts.EXPECTS.items()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """What to make a data set of, and how; checked when made."""

    # fmt: off
    images: str | None = setting("Pictures", None, "Folder of the images; needed, or root.")
    masks: str | None = setting("Pictures", None, "Folder of the masks, PNG, GIF, TIFF or BMP, each named like its image; needed, or root.")
    layout: str = setting("Pictures", "folders", f"Whose names the files have.{_LAYOUTS}\n       ", choices=tuple(layouts.EXPECTS))
    root: str | None = setting("Pictures", None, f"Folder with the folders of a layout in it, in place of images and masks: {', '.join(layouts.MAY_BE_ROOTED)}.")
    mask_suffix: str | None = setting("Pictures", None, "What a mask's name has after that of its image, such as _mask.")
    turn_images: bool = setting("Pictures", False, "Turn images as EXIF says: for masks that are upright.")

    class_names: tuple[str, ...] | None = setting("Classes", None, "Names of classes 0, 1, ..., separated by commas; those of colors or of the layout, else class_0, class_1, ... when absent.")
    colors: str | None = setting("Classes", None, "File of a class map: lines R,G,B NAME; the name ignored is for pixels that count nowhere.")
    mask_offset: int = setting("Classes", 0, "Added to a mask's id to get the class id; that of the layout when 0.", low=-255, high=255)
    ignore_id: int = setting("Classes", 255, "Mask id of pixels that count nowhere; stored as 255.", low=0, high=65535)

    val_fraction: float = setting("Splits", 0.0, "Share for validation, of train where lists or folders tell the rest; when 0, training cuts its own.", low=0, high=0.9)
    test_fraction: float = setting("Splits", 0.1, "Share for test where no lists or folders tell any split.", low=0, high=0.9)
    train_list: str | None = setting("Splits", None, "File that names the images of train, one a line; instead of fractions.")
    val_list: str | None = setting("Splits", None, "File that names the images of validation.")
    test_list: str | None = setting("Splits", None, "File that names the images of test.")
    group: str | None = setting("Splits", None, "Regular expression on an image's name; what it finds (its first parenthesis, if any) is a group, which no two splits share.")
    seed: int = setting("Splits", 0, "Seed of the splits and of the order.", low=0, high=2**31 - 1)

    data_dir: str | None = setting("Output", None, "TFDS directory to write to, local or gs://; needed.")
    name: str | None = setting("Output", None, "Name of the data set, lower case; needed, but for dataset.")
    shards: int | None = setting("Output", None, "Files of each split; as its size asks for when absent.", low=1, high=99999)

    dataset: str | None = setting("TFDS' own", None, "One of TFDS' own data sets, such as oxford_iiit_pet, to download, prepare and put into data_dir; in place of pictures.")
    download_dir: str | None = setting("TFDS' own", None, "Folder on this machine that keeps what is downloaded; removed in the end when absent.")
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        if self.dataset is not None:
            self._check_dataset()
            return
        if self.download_dir is not None:
            raise ValueError("download_dir must be given with dataset, got no dataset")
        self._check_pictures()
        if self.colors or self.layout == "carvana":
            self._check_ids()
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
            config.check_names(self.class_names)
            config.Config(class_names=self.class_names)

    def _check_dataset(self) -> None:
        for field in dataclasses.fields(self):
            own = field.name in ("dataset", "download_dir", "data_dir")
            if not own and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"dataset must be given without {field.name}, which is for pictures "
                    "of your own; leave one of them out"
                )
        if self.data_dir is None:
            raise ValueError("data_dir must be given: --data_dir=...")
        if "://" in (self.download_dir or ""):
            raise ValueError(
                f"download_dir must be a folder on this machine, got {self.download_dir}"
            )

    def _check_pictures(self) -> None:
        folders: tuple[str, ...] = ("images", "masks")
        if self.root is not None and self.layout not in layouts.MAY_BE_ROOTED:
            raise ValueError(
                "root must be given with a layout that names the folders in it, "
                f"{', '.join(layouts.MAY_BE_ROOTED)}, got layout {self.layout}; give "
                "--images and --masks instead"
            )
        if self.root is not None or self.layout in layouts.ROOTED:
            for name in folders:
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} must not be given with root or layout {self.layout}, "
                        "which knows the folders; give --root alone"
                    )
            folders = ("root",)
        for name in (*folders, "data_dir", "name"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be given: --{name}=...")
        for name in folders:
            path = getattr(self, name)
            if not os.path.isdir(path):
                raise ValueError(f"{name} must be a folder on this machine, got {path}")
        self._check_names()

    def _check_ids(self) -> None:
        by_colour = "colors" if self.colors else f"layout {self.layout}"
        for name, default in (("mask_offset", 0), ("ignore_id", 255)):
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is for masks of ids, got {getattr(self, name)} with "
                    f"{by_colour}, which tells classes by colour; leave it out"
                )

    def _check_names(self) -> None:
        same = os.path.realpath(self.images or "") == os.path.realpath(self.masks or "")
        if self.images and same and not self.mask_suffix and self.layout != "carvana":
            raise ValueError(
                f"masks must be another folder than images, got {self.masks} for both; "
                "or say how masks' names end: --mask_suffix=..."
            )
        if self.mask_suffix and self.layout == "nnunet":
            raise ValueError(
                "mask_suffix must not be given with layout nnunet, whose names are fixed"
            )

    def _check_splits(self) -> None:
        if (self.val_list or self.test_list) and not self.train_list:
            raise ValueError("train_list must be given with other lists, got none")
        if self.train_list and self.layout in layouts.SPLIT_IN_FOLDERS:
            raise ValueError(
                f"train_list must not be given with layout {self.layout}, whose folders "
                "are the splits"
            )
        if self.group is None:
            return
        try:
            re.compile(self.group)
        except re.error as error:
            raise ValueError(
                f"group must be a regular expression, got {self.group!r}: {error}"
            ) from None
