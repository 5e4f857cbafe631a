"""Which pair of image and mask belongs to which split."""

import collections
import hashlib
import os
import re
from collections.abc import Mapping, Sequence

from trainer.defects import Defect
from trainer.folders import Pair, files_in

SPLITS = ("train", "validation", "test")


def read_lists(
    lists: Mapping[str, str], images: str, in_columns: bool, defects: list[Defect]
) -> dict[str, str]:
    """Returns the split of each image that lists name, by its name without ending.

    Args:
        lists: The file of each split: a name a line, with its ending or not.
        images: The folder of the images.
        in_columns: Whether more follows after a name and a space; lines with # are
            comments then.
        defects: What is wrong is added to it.

    Raises:
        ValueError: If a list is no text.
    """
    known = {}
    for file in files_in(images):
        path = os.path.relpath(file, images).replace(os.sep, "/")
        known[path] = known[os.path.splitext(path)[0]] = os.path.splitext(path)[0]
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        try:
            with open(path, encoding="utf-8-sig") as text:
                lines = [line.strip() for line in text if line.strip()]
        except UnicodeDecodeError:
            raise ValueError(
                f"the list of {split} must be text in UTF-8, got {path}; save it so"
            ) from None
        if in_columns:
            lines = [line.split()[0] for line in lines if not line.startswith("#")]
        if not lines:
            defects.append(Defect("empty list", path, "names no image"))
        for line in lines:
            name = known.get(line, "")
            if not name:
                what = f"names {line}, which is not in {images}"
                defects.append(Defect("listed image absent", path, what))
            elif name in split_of:
                what = f"names {line}, which is of {split_of[name]} already"
                defects.append(Defect("listed twice", path, what))
            else:
                split_of[name] = split
    return split_of


def complete(
    told: Mapping[str, str] | None,
    group_of: Mapping[str, str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, str]:
    """Returns the split of each stem.

    Args:
        told: Of each stem what lists or folders say; all are cut when absent.
        group_of: The group of each stem.
        val_fraction: Share for validation, of train where all is told but that.
        test_fraction: Share for test where nothing is told.
        seed: Of the cut.
    """
    if told is None:
        return cut(group_of, val_fraction, test_fraction, seed)
    if not val_fraction or "validation" in told.values():
        return dict(told)
    train = {k: group for k, group in group_of.items() if told[k] == "train"}
    return dict(told) | cut(train, val_fraction, 0, seed)


def groups(
    pairs: Sequence[Pair], pattern: str | None, defects: list[Defect]
) -> dict[str, str]:
    """Returns the group of each stem: what the pattern finds in its name, else itself."""
    if pattern is None:
        return {pair.stem: pair.stem for pair in pairs}
    found = {}
    for pair in pairs:
        match = re.search(pattern, pair.name)
        group = match and match[match.re.groups and 1]
        if not group:
            what = f"--group={pattern} finds nothing in its name"
            defects.append(Defect("image of no group", pair.image, what))
        found[pair.stem] = group or pair.stem
    return found


def rank(seed: int, name: str) -> str:
    """Returns a digest to sort by: a shuffle that new names do not disturb."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def cut(
    group_of: Mapping[str, str], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Returns the split of each stem: whole groups, as near the shares as these allow."""
    members = collections.defaultdict(list)
    for stem, group in group_of.items():
        members[group].append(stem)
    order = sorted(members, key=lambda group: rank(seed, group))
    split_of: dict[str, str] = {}
    for split, share in (("test", test_fraction), ("validation", val_fraction)):
        wanted = max(1, round(share * len(group_of))) if share else 0
        taken = 0
        while taken < wanted and order:
            stems = members[order.pop(0)]
            split_of.update(dict.fromkeys(stems, split))
            taken += len(stems)
    rest = [stem for group in order for stem in members[group]]
    return split_of | dict.fromkeys(rest, "train")


def leaks(
    pairs: Sequence[Pair], split_of: Mapping[str, str], group_of: Mapping[str, str]
) -> list[Defect]:
    """Returns a defect for each image whose group is of another split as well."""
    first: dict[str, Pair] = {}
    found = []
    for pair in pairs:
        other = first.setdefault(group_of[pair.stem], pair)
        here, there = split_of[pair.stem], split_of[other.stem]
        if here != there:
            what = f"is of {here}, {other.image} of the same group of {there}"
            found.append(Defect("group in two splits", pair.image, what))
    return found
