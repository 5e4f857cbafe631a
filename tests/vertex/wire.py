"""What goes over the wire: jobs as JSON and as the SDK's own protobuf values, errors."""

import base64
import dataclasses
from typing import Any

from google.cloud import aiplatform_v1
from google.protobuf import json_format
from google.protobuf.message import Message

JOBS = {
    "customJobs": aiplatform_v1.CustomJob,
    "hyperparameterTuningJobs": aiplatform_v1.HyperparameterTuningJob,
}
# HTTP status -> name of the google.rpc.Code.
CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        method: GET, POST ...
        path: Without the query.
        query: The query, by name.
        headers: Names in lower case; those that hold secrets are left out.
        body: As it came.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Refusal(Exception):
    """The service does not do it.

    Attributes:
        status: Of HTTP.
        message: What the client is told.
        code: Name of the google.rpc.Code; None takes the usual one of the status.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def empty(kind: str) -> Message:
    """Returns a job with nothing in it, as protobuf."""
    return JOBS[kind]()._pb


def parsed(kind: str, value: Any) -> Message:
    """Returns a job of JSON as protobuf.

    Raises:
        Refusal: If a field is unknown or a value does not fit; it names the field.
    """
    if not isinstance(value, dict):
        raise Refusal(400, "Invalid JSON payload received. Root element must be a job.")
    try:
        return json_format.ParseDict(value, empty(kind), ignore_unknown_fields=False)
    except json_format.ParseError as error:
        raise Refusal(400, f"Invalid JSON payload received. {error}") from error


def told(message: Message, numeric_enums: bool = False) -> dict[str, Any]:
    """Returns a protobuf value as JSON."""
    return json_format.MessageToDict(message, use_integers_for_enums=numeric_enums)


def canonical(message: Message) -> dict[str, Any]:
    """Returns what is the same for all spellings of one protobuf value.

    Returns:
        value: as JSON; base64: as bytes.
    """
    data = message.SerializeToString(deterministic=True)
    return {"value": told(message), "base64": base64.b64encode(data).decode()}


def error(refusal: Refusal) -> dict[str, Any]:
    """Returns an error as Google's services tell it."""
    code = refusal.code or CODES.get(refusal.status, "UNKNOWN")
    text = {"code": refusal.status, "message": refusal.message, "status": code}
    return {"error": text}
