"""The space of a search: settings of the trainer, each with what it may be."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from deploy.order import pairs
from trainer import config, flags
from trainer.config import Config

# A trial has directories of its own, and what it is judged by is the search's.
NOT_SEARCHED = ("job_dir", "checkpoint_dir", "log_dir", "hp_metric")
# Takes the settings of a trial; raises ValueError where they cannot run.
Check = Callable[[Config], None]
SCALES = ("linear", "log", "reverse_log")
# Of so many points each is checked, of more only those along each setting.
MAX_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One setting to search: between two ends, or among values.

    Attributes:
        name: Of the trainer's setting.
        ends: Lowest and highest value, int where the setting is a whole number.
        values: The values, in order where they are numbers, texts where not.
        scale: How the numbers are spread: linear, log or reverse_log.
    """

    name: str
    ends: tuple[int, int] | tuple[float, float] | None = None
    values: tuple[Any, ...] = ()
    scale: str = "linear"


def from_flag(texts: Sequence[str]) -> dict[str, Any]:
    """Returns a space as a YAML file would hold it, from NAME=LOW..HIGH:log, NAME=A/B.

    Raises:
        ValueError: If one has another form.
    """
    space: dict[str, Any] = {}
    for name, value in pairs("search", texts, "NAME=LOW..HIGH or NAME=A/B/C"):
        if ".." in value and "..." not in value:
            low, _, rest = value.partition("..")
            high, _, scale = rest.partition(":")
            space[name] = {"min": low, "max": high, "scale": scale or "linear"}
        else:
            space[name] = value.split("/")
    return space


def from_file(path: str) -> dict[str, Any]:
    """Returns the space that a YAML file holds.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise ValueError(
            "search_space needs PyYAML, which is not installed: pip install pyyaml; or "
            "give --search"
        ) from None
    try:
        with open(path, encoding="utf-8") as file:
            space = yaml.safe_load(file)
    except OSError as error:
        raise ValueError(
            f"search_space must be a file that can be read, got {path}: "
            f"{error.strerror}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise ValueError(f"search_space must be YAML, got {path}: {what}") from None
    if not isinstance(space, dict) or not space:
        raise ValueError(
            "search_space must map settings to what they may be, such as "
            f"learning_rate: {{min: 0.0001, max: 0.01, scale: log}}, got {path}"
        )
    return space


def parameters(
    space: dict[str, Any], trainer_args: Sequence[str], check: Check
) -> list[Parameter]:
    """Returns the space, checked: the corners of it must be runs that start.

    Args:
        space: What each setting may be: {"min", "max", "scale"} or a list of values.
        trainer_args: The flags that all trials share.
        check: What each trial must pass beside.

    Raises:
        ValueError: One line: the setting, the rule, the way out.
    """
    given = config.read(trainer_args)
    found = []
    for name, what in space.items():
        if name not in given:
            raise ValueError(
                f"search must name settings of the trainer, got {name!r}; "
                "python -m trainer.task --help shows all"
            )
        if name in NOT_SEARCHED:
            raise ValueError(f"search must leave {name} alone: each trial has its own")
        if given[name].present:
            raise ValueError(
                f"search has {name}, which is also given after --; leave one of them out"
            )
        found.append(_parameter(name, what, flags.type_of(name, *config.KINDS)))
    _check_points(found, trainer_args, check)
    return found


def as_args(settings: dict[str, Any]) -> list[str]:
    """Returns the settings of a trial as flags; whole numbers without a point."""
    return [f"--{name}={text(value)}" for name, value in settings.items()]


def _parameter(name: str, what: Any, kind: type) -> Parameter:
    if isinstance(what, dict):
        return _range(name, what, kind)
    if not isinstance(what, list) or not what or None in what:
        raise ValueError(
            f"search of {name} must be {{min, max, scale}} or a list of values, got "
            f"{what!r}"
        )
    if kind in (int, float):
        numbers = sorted({_number(name, value) for value in what})
        values: tuple[Any, ...] = tuple(numbers)
    else:
        values = tuple(text(value) for value in what)
    if len(set(values)) < len(what):
        raise ValueError(f"search of {name} must name each value once, got {what}")
    if len(values) < 2:
        raise ValueError(
            f"search of {name} must have two values or more, got {what[0]}; give it "
            "after -- instead"
        )
    return Parameter(name, values=values)


def _range(name: str, what: dict[str, Any], kind: type) -> Parameter:
    if kind not in (int, float):
        raise ValueError(
            f"search of {name} must be a list of values: it is no number, got {what}"
        )
    if extra := set(what) - {"min", "max", "scale"}:
        raise ValueError(
            f"search of {name} must be {{min, max, scale}}, got {min(extra, key=str)!r}"
        )
    if not {"min", "max"} <= set(what):
        raise ValueError(f"search of {name} must have min and max, got {what}")
    low, high = _number(name, what["min"]), _number(name, what["max"])
    scale = what.get("scale", "linear")
    if scale not in SCALES:
        raise ValueError(
            f"search of {name} must have a scale of {', '.join(SCALES)}, got {scale!r}"
        )
    if not low < high:
        raise ValueError(
            f"search of {name} must have min below max, got {low:g} and {high:g}"
        )
    if scale != "linear" and low <= 0:
        raise ValueError(
            f"search of {name} must have min above 0 on a {scale} scale, got {low:g}"
        )
    if kind is int and not (low.is_integer() and high.is_integer()):
        raise ValueError(
            f"search of {name} must be between whole numbers, got {low:g} and {high:g}"
        )
    if kind is int:
        return Parameter(name, ends=(int(low), int(high)), scale=scale)
    return Parameter(name, ends=(low, high), scale=scale)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)  # YAML takes 1e-4 for a text.
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"search of {name} must have numbers, got {value!r}")
    return number


def text(value: Any) -> str:
    """Returns a value as a flag has it; whole numbers without a point."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def _check_points(
    found: Sequence[Parameter], trainer_args: Sequence[str], check: Check
) -> None:
    """Raises ValueError where a trial would be refused by the trainer."""
    axes = [_axis(parameter) for parameter in found]
    points = list(itertools.islice(itertools.product(*axes), MAX_POINTS + 1))
    if len(points) > MAX_POINTS:
        first = [axis[0] for axis in axes]
        points = [
            (*first[:i], value, *first[i + 1 :])
            for i, axis in enumerate(axes)
            for value in axis
        ]
    for point in points:
        args = as_args({p.name: v for p, v in zip(found, point, strict=True)})
        if (refusal := _refusal([*trainer_args, *args], check)) is None:
            continue
        if refusal == _refusal(trainer_args, check):  # Not this trial's alone.
            raise ValueError(refusal)
        raise ValueError(
            f"the search holds a trial that would be refused, {' '.join(args)}: {refusal}"
        )


def _refusal(args: Sequence[str], check: Check) -> str | None:
    """Returns why a run with these flags would be refused; None where it would not."""
    try:
        check(config.from_args(args))
    except ValueError as error:
        return str(error)
    return None


def _axis(parameter: Parameter) -> tuple[Any, ...]:
    """Returns the values that are tried: both ends, and one whole number between."""
    if parameter.ends is None:
        return parameter.values
    low, high = parameter.ends
    return (
        (low, low + 1, high) if isinstance(low, int) and low + 1 < high else (low, high)
    )
