"""Trials of tuning jobs, as the service tells of them."""

from collections.abc import Mapping
from typing import Any


def trial(
    number: int,
    state: str,
    parameters: Mapping[str, float | str],
    metrics: Mapping[str, float] | None = None,
    step: int = 0,
    reason: str | None = None,
) -> dict[str, Any]:
    """Returns a trial of a tuning job, for a step of a script.

    Args:
        number: Its id; the first is 1.
        state: ACTIVE, SUCCEEDED, INFEASIBLE ...
        parameters: What it was given, by name.
        metrics: What it reported in the end, by name; None has not.
        step: When it reported that.
        reason: Why it is INFEASIBLE.
    """
    given = [{"parameterId": name, "value": x} for name, x in parameters.items()]
    told: dict[str, Any] = {"id": str(number), "state": state, "parameters": given}
    if metrics is not None:
        values = [{"metricId": name, "value": x} for name, x in metrics.items()]
        told["finalMeasurement"] = {"stepCount": str(step), "metrics": values}
    return told | ({} if reason is None else {"infeasibleReason": reason})
