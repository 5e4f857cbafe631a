"""A frozen dataclass of settings as command-line flags: read, checked, shown, written.

No TensorFlow here: orders of jobs are read so as well, on machines without it.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags

Settings = TypeVar("Settings")
HELP = ("--help", "-help", "-h", "--helpfull")
MOST = 10**12  # Of integers whose setting has no bound of its own.
TRUE_OR_FALSE = frozenset(("true", "t", "1", "false", "f", "0"))


def setting(
    group: str,
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    identity: bool = False,
) -> Any:
    """Returns a field of a dataclass of settings.

    Args:
        group: Heading under which `--help` shows it.
        default: Value when the flag is not given.
        help: One sentence with the unit.
        choices: The values allowed; any when absent.
        low: Smallest value allowed.
        high: Largest value allowed; `MOST` for integers when absent.
        identity: Whether it makes the run what it is, so that a run cannot be
            resumed with another value.
    """
    metadata = dict(
        group=group, help=help, choices=choices, low=low, high=high, identity=identity
    )
    return dataclasses.field(default=default, metadata=metadata)


def check(settings: Any) -> None:
    """Raises ValueError, in one line, where a value is not one that its setting allows."""
    for field in dataclasses.fields(settings):
        _check(field, getattr(settings, field.name))


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError where `value` is not one that the setting allows."""
    if value is None:
        return
    rule = field.metadata
    if isinstance(value, str) and not value:
        raise ValueError(f"{field.name} must not be empty; leave the flag out instead")
    if isinstance(value, str) and value.startswith("--"):
        raise ValueError(
            f"{field.name} must have a value, got the next flag, {value}; write "
            f"--{field.name}=VALUE"
        )
    if isinstance(value, str) and value.startswith("~"):
        raise ValueError(
            f"{field.name} must be a path without ~, which the shell leaves alone after "
            f"=, got {value}; write $HOME instead"
        )
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and re.match("gs:(?!//)", text):
            raise ValueError(
                f"{field.name} must be a path such as gs://BUCKET/FOLDER, got {text}"
            )
    if rule["choices"] and value not in rule["choices"]:
        options = ", ".join(rule["choices"])
        raise ValueError(f"{field.name} must be one of {options}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field.name} must be a finite number, got {value}")
    low, high = rule["low"], rule["high"]
    if high is None and isinstance(value, int):
        high = MOST
    if low is not None and value < low:
        raise ValueError(f"{field.name} must be at least {low:.12g}, got {value:.12g}")
    if high is not None and value > high:
        raise ValueError(f"{field.name} must be at most {high:.12g}, got {value:.12g}")


def read(
    args: Sequence[str], *kinds: type, rest: str | None = None
) -> flags.FlagValues:
    """Returns the flags of a command line.

    Args:
        args: The command line without the program's name: `--name=value`,
            `--name value`; for booleans also `--name` and `--noname`. Integers may
            be written 16.0 and booleans as two words, as tuners write them.
        kinds: Dataclasses whose settings they are.
        rest: Name of the setting that takes the arguments that are no flags.

    Raises:
        ValueError: One line about the flag that is unknown or malformed.
    """
    values = define(*kinds)
    booleans = {f.name for f in _fields(kinds) if _type(f) is bool}
    try:
        stray = values(["command", *_joined(args, booleans)])[1:]
    except flags.Error as error:
        raise ValueError(_one_line(error)) from None
    if stray and rest is not None:
        values[rest].value = (*(values[rest].value or ()), *stray)
    elif stray:
        raise ValueError(
            f"unexpected argument {stray[0]!r}: settings are given as --name=value"
        )
    return values


def make(kind: type[Settings], values: flags.FlagValues) -> Settings:
    """Returns the settings of one kind; its own checks may raise ValueError."""
    return kind(**{f.name: values[f.name].value for f in _fields([kind])})


def type_of(name: str, *kinds: type) -> Any:
    """Returns the type of the setting `name` of some kind, that of its value if any."""
    [field] = [field for field in _fields(kinds) if field.name == name]
    return _type(field)


def define(*kinds: type) -> flags.FlagValues:
    """Returns one absl flag for each setting, none of them global."""
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    for field in _fields(kinds):
        help = field.metadata["help"]
        kind = _type(field)
        default = typing.cast(Any, field.default)
        if kind is bool:
            flags.DEFINE_boolean(field.name, default, help, flag_values=values)
        else:
            parser = _Parser(kind=kind)
            flags.DEFINE(parser, field.name, default, help, flag_values=values)
    return values


class _Parser(flags.ArgumentParser[Any]):
    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def parse(self, argument: Any) -> Any:
        try:
            return _PARSE[self.kind](argument)
        except (ValueError, OverflowError):
            raise ValueError(f"must be {_KIND[self.kind]}") from None


def _integer(text: Any) -> int:
    # Vertex AI's tuner sends integers as 16.0.
    number = float(text)
    if number != int(number):
        raise ValueError
    return int(text) if isinstance(text, int) else int(number)


def _integers(text: Any) -> tuple[int, ...]:
    return text if isinstance(text, tuple) else tuple(map(_integer, text.split(",")))


def _names(text: Any) -> tuple[str, ...]:
    return text if isinstance(text, tuple) else tuple(text.split(","))


_PARSE: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: float,
    str: str,
    tuple[int, ...]: _integers,
    tuple[str, ...]: _names,
}

_KIND: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    tuple[int, ...]: "whole numbers separated by commas",
}


def _type(field: dataclasses.Field[Any]) -> Any:
    """Returns the type of a setting's value when it has one."""
    if isinstance(field.type, types.UnionType):
        return typing.get_args(field.type)[0]
    return field.type


def _joined(args: Sequence[str], booleans: set[str]) -> list[str]:
    """Returns the arguments with `--flag true` as one, which absl leaves as two."""
    joined: list[str] = []
    for arg in args:
        last = joined[-1] if joined else ""
        if arg.lower() in TRUE_OR_FALSE and last.lstrip("-") in booleans:
            joined[-1] = f"{last}={arg.lower()}"
        else:
            joined.append(arg)
    return joined


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines).removeprefix("ERROR:: ")
    # absl shows a tuple where its text for booleans should be.
    text = re.sub(r"\('Non-boolean argument.*\)$", "must be true or false", text)
    return text + "; --help shows all flags"


def asks_for_help(args: Sequence[str]) -> bool:
    """Returns whether a command line asks for `help_text`."""
    return any(arg in HELP for arg in args)


def help_text(*kinds: type) -> str:
    """Returns what `--help` prints: every flag under its heading."""
    lines: list[str] = []
    heading = None
    for field in _fields(kinds):
        if field.metadata["group"] != heading:
            heading = field.metadata["group"]
            lines += ["", f"{heading}:"]
        default = "" if field.default is None else f"={_shown(field.default)}"
        choices = field.metadata["choices"]
        options = f" [{' | '.join(choices)}]" if choices else ""
        lines.append(f"  --{field.name}{default}")
        lines.append(f"      {field.metadata['help']}{options}")
    return "\n".join(lines[1:])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fields(kinds: Sequence[type]) -> list[dataclasses.Field[Any]]:
    return [field for kind in kinds for field in dataclasses.fields(kind)]
