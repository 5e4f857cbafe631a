"""A folder of images and masks -> a TFDS data set that trainer.task trains on.

    python -m trainer.prepare --images=photos --masks=masks --data_dir=tfds --name=cars
    python -m trainer.prepare --layout=mmseg --root=cityscapes --data_dir=tfds --name=city
    python -m trainer.prepare --dataset=oxford_iiit_pet --data_dir=gs://BUCKET/tfds

All is checked first; what is wrong is told file by file, and then nothing is written.
Exit codes: 0 written; 2 refused, nothing written; 1 stopped later, nothing left.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from trainer import command, defects, masks, terminal
from trainer.preparation import Preparation

if TYPE_CHECKING:
    from trainer.examine import Found, Listed

ABOUT = "Makes a data set of images and masks, or fetches one of TFDS' own."


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares one data set; returns the exit code."""
    args = sys.argv[1:] if argv is None else argv
    return command.run(ABOUT, Preparation, args, _ready, whole=True)


def _ready(settings: Preparation) -> Callable[[], int]:
    """Returns the work, having seen that it may be done."""
    # TensorFlow: as slow to come as large.
    from trainer import bucket, examine, files, run_files

    assert settings.data_dir
    if files.remote(settings.data_dir):
        bucket.check("data_dir", settings.data_dir, bucket.WRITE)
    else:
        name = settings.name or ""
        run_files.check_directory("data_dir", os.path.join(settings.data_dir, name))
    if settings.dataset:
        return _ready_to_fetch(settings)
    _check_target(settings)
    listed = examine.listed(settings)
    return lambda: _prepare(settings, listed)


def _ready_to_fetch(settings: Preparation) -> Callable[[], int]:
    from trainer import fetch

    assert settings.dataset and settings.data_dir
    name, data_dir = settings.dataset, settings.data_dir
    folder = fetch.folder_of(name, data_dir)

    def work() -> int:
        print(fetch.fetch(name, data_dir, folder, settings.download_dir))
        print(f"train on it:\n  {fetch.training(name, data_dir)}")
        return 0

    return work


def _check_target(settings: Preparation) -> None:
    """Raises ValueError where the data set cannot be written."""
    import tensorflow_datasets as tfds

    from trainer import shards

    assert settings.data_dir and settings.name
    if shards.holds(settings.data_dir, settings.name):
        raise ValueError(
            f"name must be new, got {settings.name}, which {settings.data_dir} holds "
            "already; give another --name, or remove it"
        )
    if settings.name in tfds.list_builders(with_community_datasets=False):
        raise ValueError(
            f"name must be no data set of TFDS' own, got {settings.name}; give another"
        )


def _prepare(settings: Preparation, listed: "Listed") -> int:
    """Checks the files and writes the data set if they are sound; returns the exit code."""
    from trainer import examine, pack

    found = examine.examine(settings, listed)
    if found.defects:
        print(defects.report(found.defects))
    refused = sum(defect.refused for defect in found.defects)
    if refused:
        word = "defect" if refused == 1 else "defects"
        reason = f"{refused} {word}, named above; nothing was written"
        return terminal.stopped(command.REFUSED, reason)
    dealt = pack.deal(settings, found)
    target = pack.write(settings, found, dealt)
    print("\n".join([target, *_summary(settings, found, dealt)]))
    return 0


def _summary(settings: Preparation, found: "Found", dealt: dict) -> Iterator[str]:
    """Yields the lines that say what was written, and what to do with it."""
    for split, parts in dealt.items():
        yield f"  {split}: {sum(map(len, parts))} examples in {len(parts)} shards"
    pixels = found.pixels
    for id, name in enumerate(found.class_names):
        yield f"  class {id} {name}: {pixels[id] / pixels.sum():.1%} of the pixels"
    yield f"  ignored: {pixels[masks.IGNORED] / pixels.sum():.1%} of the pixels"
    yield "train on it:"
    yield (
        f"  python -m trainer.task --dataset={settings.name} "
        f"--data_dir={shlex.quote(settings.data_dir or '')}"
    )


if __name__ == "__main__":
    command.process(main)
