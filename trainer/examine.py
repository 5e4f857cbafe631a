"""What folders of images and masks hold, and all that is wrong with it."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from trainer import checks, config, defects, folders, layouts, masks, splits
from trainer.preparation import Preparation


@dataclasses.dataclass(frozen=True)
class Found:
    """What the folders hold, sound or not."""

    top: str  # Folder of all images.
    looks: Sequence[checks.Look]
    pixels: np.ndarray  # (256,) int64, of each class id; the last are ignored.
    rule: masks.Rule
    class_names: Sequence[str]
    split_of: Mapping[str, str]
    defects: Sequence[defects.Defect]


@dataclasses.dataclass(frozen=True)
class Listed:
    """The files that are to be looked into."""

    source: layouts.Source
    pairs: Sequence[folders.Pair]
    rule: masks.Rule
    class_names: Sequence[str] | None  # As many as there are ids when absent.
    split_of: Mapping[str, str]
    defects: Sequence[defects.Defect]


def _source(settings: Preparation, wrong: list[defects.Defect]) -> layouts.Source:
    """Returns where the pictures are; lists of the user's go before the layout's own."""
    paths = settings.train_list, settings.val_list, settings.test_list
    lists = {s: path for s, path in zip(splits.SPLITS, paths, strict=True) if path}
    if settings.root:
        source = layouts.of_root(
            settings.layout, settings.root, settings.mask_suffix, bool(lists), wrong
        )
    else:
        assert settings.images and settings.masks
        source = layouts.of_folders(
            settings.layout, settings.images, settings.masks, settings.mask_suffix
        )
    return dataclasses.replace(source, lists=lists or source.lists)


def _rule(
    settings: Preparation, source: layouts.Source
) -> tuple[masks.Rule, tuple[str, ...] | None]:
    """Returns how masks are read, and the names of the classes where they are told."""
    names = settings.class_names or source.class_names
    colours = None
    if settings.colors:
        told, colours = masks.read_class_map(settings.colors)
        if settings.class_names and set(told) != set(settings.class_names):
            raise ValueError(
                f"class_names must be those of colors, {','.join(told)}, got "
                f"{','.join(settings.class_names)}"
            )
        order = settings.class_names or told
        colours = {
            colour: id if id == masks.IGNORED else order.index(told[id])
            for colour, id in colours.items()
        }
        names = order
    elif settings.layout == "carvana":
        colours = masks.BLACK_AND_WHITE
    if names:
        config.Config(class_names=tuple(names))
    ignore_id = settings.ignore_id
    if source.ignore_id is not None:
        if ignore_id not in (Preparation.ignore_id, source.ignore_id):
            raise ValueError(
                f"ignore_id is for masks of which nothing tells it, got {ignore_id} with "
                f"layout {settings.layout}, whose files tell {source.ignore_id}; leave it "
                "out"
            )
        ignore_id = source.ignore_id
    rule = masks.Rule(
        num_classes=len(names) if names else None,
        offset=settings.mask_offset or source.mask_offset,
        ignore_id=ignore_id,
        colours=colours,
    )
    return rule, names


def _check_fractions(settings: Preparation, told: Mapping[str, str] | None) -> None:
    """Raises ValueError where shares leave nothing to train on, or would cut nothing.

    `told` is what lists or folders say of the splits.
    """
    val_fraction, test_fraction = settings.val_fraction, settings.test_fraction
    if told is None:
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                "val_fraction and test_fraction must leave examples to train, got "
                f"{val_fraction:g} and {test_fraction:g}"
            )
        return
    there = set(told.values())
    idle = {
        "val_fraction": val_fraction and "validation" in there,
        # 0 is as good as left out where there is no test to leave out.
        "test_fraction": test_fraction != Preparation.test_fraction
        and (test_fraction or "test" in there),
    }
    by = "lists" if settings.train_list else f"layout {settings.layout}"
    for name, is_idle in idle.items():
        if is_idle:
            raise ValueError(
                f"{name} must be left out where it cuts nothing, got "
                f"{getattr(settings, name):g} with the splits of {by}"
            )


def listed(settings: Preparation) -> Listed:
    """Returns the files of the folders, none of them read yet.

    Raises:
        ValueError: If the folders or the settings cannot be so.
    """
    wrong: list[defects.Defect] = []
    source = _source(settings, wrong)
    rule, names = _rule(settings, source)
    told = wanted = None
    if source.lists:
        in_columns = settings.layout == "oxford"
        told = splits.read_lists(source.lists, source.top, in_columns, wrong)
        wanted = told.keys()
    pairs: list[folders.Pair] = []
    for place in source.places:
        those = folders.find_pairs(place, wrong, wanted)
        pairs += those
        if place.split:
            told = {**(told or {}), **{pair.stem: place.split for pair in those}}
    group_of = splits.groups(pairs, settings.group, wrong)
    _check_fractions(settings, told)
    split_of = splits.complete(
        told, group_of, settings.val_fraction, settings.test_fraction, settings.seed
    )
    if told is not None:
        wrong += splits.leaks(pairs, split_of, group_of)
    if settings.group and pairs and "validation" not in split_of.values():
        raise ValueError(
            "group needs a validation split, which training would cut without regard to "
            "groups; give --val_fraction or --val_list"
        )
    told_why = not pairs and any(defect.refused for defect in wrong)
    if not told_why and "train" not in {split_of[pair.stem] for pair in pairs}:
        what = "no image is left to train on"
        wrong.append(defects.Defect("empty train split", source.top, what))
    return Listed(source, pairs, rule, names, split_of, wrong)


def examine(settings: Preparation, files: Listed) -> Found:
    """Returns what the files hold and all that is wrong with it; writes nothing."""
    rule, names, split_of = files.rule, files.class_names, files.split_of
    looks = checks.look_at_all(files.pairs, rule, settings.turn_images)
    wrong = [*files.defects, *(defect for seen in looks for defect in seen.defects)]
    wrong += checks.same_pictures(looks, split_of)
    pixels = sum((seen.pixels for seen in looks), np.zeros(256, np.int64))
    if names is None:
        top = int(np.flatnonzero(pixels[: masks.IGNORED]).max(initial=1))
        names = tuple(f"class_{id}" for id in range(top + 1))
    if pixels.any():
        wrong += checks.classes(pixels, names, files.source.places[0].masks, rule)
    return Found(files.source.top, looks, pixels, rule, names, split_of, wrong)
