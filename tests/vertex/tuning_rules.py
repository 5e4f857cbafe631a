"""The rules of the service for a search of hyperparameters.

Source: the comments of HyperparameterTuningJob and StudySpec in the SDK, and the
product's pages on hyperparameter tuning.
"""

import itertools
import math
import re

from google.protobuf.message import Message

from tests.vertex import rules, wire
from tests.vertex.rules import Wrongs

TPU_MACHINE = re.compile(r"(ct\w*|cloud-tpu)(-.*)?")
GRID_SEARCH = 2
LOGARITHMIC = {2, 3}
DISCRETE_VALUES, DISCRETE_STEP = 1000, 1e-10


def check(job: Message, region: str) -> None:
    """Refuses a tuning job that breaks a rule; says all that it breaks.

    Raises:
        wire.Refusal: With status 400, or 404 for what is not in this region.
    """
    spec = job.trial_job_spec
    rules.refuse_if(
        [
            *rules.of_name(job),
            *rules.of_key(job, region),
            *rules.of_spec(spec, "trial_job_spec"),
            *_of_machines(spec),
            *_of_counts(job),
            *_of_study(job.study_spec),
        ]
    )
    rules.check_tensorboard(spec, region)


def _of_machines(spec: Message) -> Wrongs:
    for index, pool in enumerate(spec.worker_pool_specs):
        machine = pool.machine_spec
        is_tpu = "TPU" in str(wire.told(machine).get("acceleratorType", ""))
        if (
            TPU_MACHINE.fullmatch(machine.machine_type)
            or machine.tpu_topology
            or is_tpu
        ):
            yield (
                f"trial_job_spec.worker_pool_specs[{index}].machine_spec",
                "hyperparameter tuning is not supported on TPUs",
            )


def _of_counts(job: Message) -> Wrongs:
    if job.max_trial_count < 1:
        yield "max_trial_count", f"must be positive, got {job.max_trial_count}"
    if not 1 <= job.parallel_trial_count <= job.max_trial_count:
        told = f"1 to max_trial_count, {job.max_trial_count}"
        yield "parallel_trial_count", f"{told}, got {job.parallel_trial_count}"
    if not 0 <= job.max_failed_trial_count <= job.max_trial_count:
        told = f"0 to max_trial_count, {job.max_trial_count}"
        yield "max_failed_trial_count", f"{told}, got {job.max_failed_trial_count}"


def _of_study(study: Message) -> Wrongs:
    at = "study_spec"
    if not study.metrics:
        yield f"{at}.metrics", "required"
    for index, metric in enumerate(study.metrics):
        place = f"{at}.metrics[{index}]"
        yield from rules.of_enum(metric, "goal", place)
        if not metric.goal:
            yield f"{place}.goal", "required"
    yield from _of_ids([metric.metric_id for metric in study.metrics], "metric_id")
    if not study.parameters:
        yield f"{at}.parameters", "required"
    yield from _of_ids([one.parameter_id for one in study.parameters], "parameter_id")
    for index, parameter in enumerate(study.parameters):
        place = f"{at}.parameters[{index}]"
        yield from _of_parameter(parameter, place)
        kind = parameter.WhichOneof("parameter_value_spec")
        if study.algorithm == GRID_SEARCH and kind == "double_value_spec":
            yield place, "GRID_SEARCH has no DOUBLE parameters"
    for field in ("algorithm", "measurement_selection_type"):
        yield from rules.of_enum(study, field, at)
    if study.observation_noise:
        yield f"{at}.observation_noise", "not supported by hyperparameter tuning"


def _of_ids(ids: list[str], field: str) -> Wrongs:
    for name in ids:
        if not name or re.search(r"\s", name):
            yield f"study_spec.{field}", f"required, without whitespace, got {name!r}"
        elif ids.count(name) > 1:
            yield f"study_spec.{field}", f"must be unique, got {name}"


def _of_parameter(parameter: Message, at: str) -> Wrongs:
    yield from rules.of_enum(parameter, "scale_type", at)
    kind = parameter.WhichOneof("parameter_value_spec")
    if kind is None:
        yield at, "needs one of the value specs"
        return
    spec, place = getattr(parameter, kind), f"{at}.{kind}"
    if spec.HasField("default_value"):
        yield f"{place}.default_value", "not supported by hyperparameter tuning"
    if kind == "categorical_value_spec":
        if parameter.scale_type:
            yield f"{at}.scale_type", "must be unset for CATEGORICAL parameters"
        if not spec.values or len(set(spec.values)) < len(spec.values):
            yield f"{place}.values", "needs categories, each once"
        return
    if kind == "discrete_value_spec":
        values = list(spec.values)
        yield from _of_discrete(values, f"{place}.values")
    else:
        values = [spec.min_value, spec.max_value]
        if not all(map(math.isfinite, values)) or values[0] > values[1]:
            yield place, f"min_value must be at most max_value, got {values}"
    if parameter.scale_type in LOGARITHMIC and any(value <= 0 for value in values):
        yield f"{at}.scale_type", "a logarithmic scale needs positive values"
    for conditional in parameter.conditional_parameter_specs:
        if conditional.WhichOneof("parent_value_condition") is None:
            yield at, "a conditional parameter needs a condition"
        yield from _of_parameter(conditional.parameter_spec, f"{at}.conditional")


def _of_discrete(values: list[float], at: str) -> Wrongs:
    if not 1 <= len(values) <= DISCRETE_VALUES:
        yield at, f"1 to {DISCRETE_VALUES} values, got {len(values)}"
    if not all(map(math.isfinite, values)):
        yield at, "must be numbers"
    if any(b - a < DISCRETE_STEP for a, b in itertools.pairwise(values)):
        yield at, f"must increase by at least {DISCRETE_STEP}, got {values}"
