"""The filter of a list of jobs: comparisons of fields, all of which must hold.

Source: the comment of ListCustomJobsRequest.filter in the SDK. OR and NOT are refused:
nothing of ours asks with them.
"""

import fnmatch
import operator
import re
from collections.abc import Callable
from typing import Any

from google.protobuf import timestamp_pb2
from google.protobuf.message import Message

from tests.vertex import wire

CLAUSE = re.compile(
    r'(?P<field>display_name|state|create_time|labels\.[^\s"=!:<>]+)\s*'
    r'(?P<sign><=|>=|!=|=|:|<|>)\s*("(?P<quoted>[^"]*)"|(?P<plain>[^\s"]+))'
)
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# Which comparisons a field has.
SIGNS = {"display_name": {"=", "!=", ":"}, "state": {"=", "!="}, "labels": {"=", ":"}}


def compiled(text: str) -> Callable[[Message], bool]:
    """Returns whether a job is one of those that the filter asks for.

    Raises:
        wire.Refusal: If the filter cannot be read.
    """
    parts = re.split(r"\s+AND\s+", text.strip()) if text.strip() else []
    clauses = [_clause(part) for part in parts]
    return lambda job: all(clause(job) for clause in clauses)


def _clause(text: str) -> Callable[[Message], bool]:
    found = CLAUSE.fullmatch(text)
    if found is None:
        raise wire.Refusal(400, f"Invalid filter: {text}")
    field, sign = found["field"], found["sign"]
    value = found["plain"] if found["quoted"] is None else found["quoted"]
    if sign not in SIGNS.get(field.split(".")[0], ORDERS):
        raise wire.Refusal(400, f"Invalid filter: {field} has no {sign}")
    if field == "create_time":
        return _by_time(sign, value)
    if field.startswith("labels."):
        key = field.removeprefix("labels.")
        if sign == ":":
            return lambda job: key in job.labels
        return lambda job: job.labels.get(key) == value
    if sign == ":":
        return lambda job: fnmatch.fnmatchcase(job.display_name, value)
    if field == "state":
        return lambda job: ORDERS[sign](wire.told(job).get("state"), value)
    return lambda job: ORDERS[sign](job.display_name, value)


def _by_time(sign: str, text: str) -> Callable[[Message], bool]:
    time = timestamp_pb2.Timestamp()
    try:
        time.FromJsonString(text)
    except ValueError as error:
        raise wire.Refusal(400, f"Invalid filter: {error}") from error
    nanoseconds = time.ToNanoseconds()
    return lambda job: ORDERS[sign](job.create_time.ToNanoseconds(), nanoseconds)
