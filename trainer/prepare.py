"""A folder of images and masks -> a TFDS data set that trainer.task trains on.

    python -m trainer.prepare --images=photos --masks=masks --data_dir=tfds --name=cars

All is checked first; what is wrong is told file by file, and then nothing is written.
Exit codes: 0 written; 2 refused, nothing written; 1 stopped while writing, nothing left.
"""

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from trainer import defects, flags, masks, terminal
from trainer.preparation import Preparation

if TYPE_CHECKING:
    from trainer.examine import Found

REFUSED, FAILED, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares one data set; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if flags.asks_for_help(args):
        print(
            f"Makes a data set of images and masks.\n\n{flags.help_text(Preparation)}"
        )
        return 0
    try:
        settings = flags.make(Preparation, flags.read(args, Preparation))
        with terminal.quiet_start():
            from trainer import examine  # With TensorFlow, as slow to come as large.

            _check_target(settings)
        found = examine.examine(settings)
    except ModuleNotFoundError as error:
        return terminal.stopped(REFUSED, terminal.missing(error))
    except KeyboardInterrupt:
        return terminal.stopped(INTERRUPTED, "interrupted; nothing was written")
    except Exception as error:
        if not terminal.expected(error):
            raise
        return terminal.stopped(REFUSED, terminal.one_line(error))
    if found.defects:
        print(defects.report(found.defects))
    refused = sum(defect.refused for defect in found.defects)
    if refused:
        word = "defect" if refused == 1 else "defects"
        reason = f"{refused} {word}, named above; nothing was written"
        return terminal.stopped(REFUSED, reason)
    try:
        print(_written(settings, found))
    except KeyboardInterrupt:
        return terminal.stopped(INTERRUPTED, "interrupted; nothing was written")
    except Exception as error:
        if not terminal.expected(error):
            raise
        return terminal.stopped(
            FAILED, f"{terminal.one_line(error)}; nothing was written"
        )
    return 0


def _check_target(settings: Preparation) -> None:
    """Raises ValueError where the data set cannot be written."""
    import tensorflow_datasets as tfds

    from trainer import shards

    assert settings.data_dir and settings.name
    if shards.is_there(settings.data_dir, settings.name):
        raise ValueError(
            f"name must be new, got {settings.name}, which {settings.data_dir} holds "
            "already; give another --name, or remove it"
        )
    if settings.name in tfds.list_builders(with_community_datasets=False):
        raise ValueError(
            f"name must be no data set of TFDS' own, got {settings.name}; give another"
        )


def _written(settings: Preparation, found: "Found") -> str:
    """Writes the data set; returns what there is to say of it."""
    from trainer import pack  # With TensorFlow.

    dealt = pack.deal(settings, found)
    target = pack.write(settings, found, dealt)
    return "\n".join([target, *_summary(settings, found, dealt)])


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


def command() -> NoReturn:
    """Runs `main` as a process, which SIGTERM ends as Ctrl-C does: nothing is left."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


if __name__ == "__main__":
    command()
