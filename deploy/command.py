"""What all commands of `deploy` share: help, refusals in one line, exit codes."""

import os
import sys
from collections.abc import Callable, Sequence

from deploy import order
from trainer import flags

REFUSED, FAILED, INTERRUPTED = 2, 1, 130


class Failure(Exception):
    """What went wrong outside of the order itself, in one line."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and in one line what was under way."""


def run(
    about: str,
    action: Callable[..., int],
    kinds: Sequence[type],
    argv: Sequence[str] | None,
) -> int:
    """Returns the exit code of a command: 0 done, 2 refused, 1 failed later.

    Args:
        about: What the command does, for `--help`.
        action: Takes the settings of each kind and the trainer's flags, if any kind
            is an order's.
        kinds: Dataclasses whose settings are the command's flags.
        argv: The command line without the program's name; the process's when absent.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    ours = args[: args.index("--")] if "--" in args else args
    if flags.asks_for_help(ours):
        print(f"{about}\n\n{flags.help_text(*kinds)}")
        return 0
    try:
        settings, trainer_args = order.read(args, os.environ, *kinds)
        if order.Order in kinds:
            return action(*settings, trainer_args)
        if trainer_args:
            raise ValueError(
                "what comes after -- are flags of the trainer: no use here"
            )
        return action(*settings)
    except ValueError as error:
        return stopped(REFUSED, str(error))
    except KeyboardInterrupt as error:
        return stopped(INTERRUPTED, str(error) or "interrupted")
    except BrokenPipeError:  # Nobody reads the answer to its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (Failure, OSError) as error:
        return stopped(FAILED, str(error))


def stopped(code: int, reason: str) -> int:
    """Returns the exit code, having said why in one line."""
    print(f"segtrainer: {reason}", file=sys.stderr)
    return code


def note(text: str) -> None:
    """Says something beside the answer that the command was asked for."""
    print(text, file=sys.stderr, flush=True)
