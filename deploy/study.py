"""A search as it was asked for, checked: the space, the metric, the goal."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from deploy import space
from deploy.order import Search
from trainer import config

MAX_GRID = 100_000


@dataclasses.dataclass(frozen=True)
class Study:
    """A search that was checked.

    Attributes:
        metric: What trials are judged by.
        goal: minimize or maximize.
        parameters: The space.
        trainer_args: Flags that all trials share, the metric's among them.
    """

    metric: str
    goal: str
    parameters: list[space.Parameter]
    trainer_args: list[str]


def checked_study(
    search: Search, trainer_args: Sequence[str], check: space.Check
) -> Study:
    """Returns the search, checked against the trainer's settings.

    Args:
        search: The search.
        trainer_args: Flags of the trainer that all trials share.
        check: What each of its trials must pass beside the trainer's own checks.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """
    hp_metric = config.read(trainer_args)["hp_metric"]
    metric = search.metric or str(hp_metric.value)
    if hp_metric.present and hp_metric.value != metric:
        raise ValueError(
            f"metric must be the trainer's hp_metric, got {metric} and "
            f"{hp_metric.value}; leave one of them out"
        )
    told = [] if hp_metric.value == metric else [f"--hp_metric={metric}"]
    shared = [*trainer_args, *told]
    found = space.parameters(_space(search), shared, check)
    if search.algorithm == "grid":
        if any(one.ends and isinstance(one.ends[0], float) for one in found):
            raise ValueError(
                "algorithm grid needs whole numbers or lists of values, got a range of "
                "fractions; list its values, or take random"
            )
        if (size := math.prod(map(_num_points, found))) > MAX_GRID:
            raise ValueError(
                f"algorithm grid must have at most {MAX_GRID} points, got {size}; give "
                "fewer values, or take random"
            )
    goal = search.goal or ("minimize" if metric == "val_loss" else "maximize")
    return Study(metric=metric, goal=goal, parameters=found, trainer_args=shared)


def _space(search: Search) -> dict[str, Any]:
    """Returns the space as a YAML file would hold it."""
    if search.search is not None and search.search_space is None:
        return space.from_flag(search.search)
    if search.search_space is not None and search.search is None:
        return space.from_file(search.search_space)
    raise ValueError(
        "a search needs search or search_space, one of them; such as "
        "--search=learning_rate=0.0001..0.01:log"
    )


def _num_points(parameter: space.Parameter) -> int:
    if parameter.ends is None:
        return len(parameter.values)
    return int(parameter.ends[1] - parameter.ends[0]) + 1
