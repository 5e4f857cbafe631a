"""Requests and answers as plain values, and what a request asks for."""

import dataclasses
import json
import urllib.parse
from typing import Any, NamedTuple

UPLOAD = "/upload/storage/v1/b/"
# What changes an object, or would if it went through.
WRITES = ("session", "upload", "delete", "copy", "compose", "update")
# By which the service names a status in its errors.
REASONS = {
    400: "invalid",
    403: "forbidden",
    404: "notFound",
    412: "conditionNotMet",
    429: "rateLimitExceeded",
    500: "internalError",
    503: "backendError",
}
JSON = [("content-type", "application/json; charset=UTF-8")]


class Answer(NamedTuple):
    """A response; its headers tell all but the length of the body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclasses.dataclass(frozen=True)
class Request:
    """A request; the names of the headers in lower case, the path as it was sent."""

    method: str
    host: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    def asked(self, name: str) -> str | None:
        """Returns the first value of a name in the query, None without one."""
        values = urllib.parse.parse_qs(self.query).get(name)
        return values[0] if values else None


@dataclasses.dataclass(frozen=True)
class Act:
    """What a request asks for.

    Attributes:
        kind: stat, read, list, iam, bucket, status (of an upload) or other, or one of
            `WRITES`; session begins an upload that comes in parts.
        bucket: Where.
        name: Of the object that is read or written; of a list, its prefix.
        sources: Names of what is copied or composed.
    """

    kind: str
    bucket: str = ""
    name: str = ""
    sources: tuple[str, ...] = ()


def act_of(request: Request) -> Act:
    """Returns what a request asks for."""
    if request.path.startswith(UPLOAD):
        bucket = request.path.removeprefix(UPLOAD).split("/")[0]
        name = request.asked("name") or described(request).get("name", "")
        return Act(_kind_of_upload(request), bucket, name)
    is_media = request.asked("alt") == "media"
    parts = [urllib.parse.unquote(part) for part in request.path.split("/")[1:]]
    match parts:
        case ["download", "storage", "v1", "b", bucket, "o", name]:
            return Act("read", bucket, name)
        case ["storage", "v1", "b", bucket, "iam", "testPermissions"]:
            return Act("iam", bucket)
        case ["storage", "v1", "b", bucket, "o"]:
            return Act("list", bucket, request.asked("prefix") or "")
        case ["storage", "v1", "b", bucket, "o", name, "compose"]:
            told = described(request).get("sourceObjects", [])
            return Act("compose", bucket, name, tuple(one["name"] for one in told))
        case ["storage", "v1", "b", _, "o", source, _, "b", bucket, "o", name]:
            return Act("copy", bucket, name, (source,))
        case ["storage", "v1", "b", bucket, "o", name]:
            kinds = {"GET": "read" if is_media else "stat", "DELETE": "delete"}
            return Act(kinds.get(request.method, "update"), bucket, name)
        case ["storage", "v1", "b", bucket, *_]:
            return Act("bucket", bucket)
        case [bucket, first, *rest] if request.method == "GET":
            # The path of the XML interface, by which TensorFlow reads.
            return Act("read", bucket, "/".join([first, *rest]))
    return Act("other")


def _kind_of_upload(request: Request) -> str:
    if request.asked("upload_id") is None:
        return "session" if request.asked("uploadType") == "resumable" else "upload"
    about = request.headers.get("content-range", "")
    return "status" if about.startswith("bytes */") else "upload"


def described(request: Request) -> dict[str, Any]:
    """Returns what the body of a request, or the first part of it, tells of an object."""
    if not request.headers.get("content-type", "").startswith(
        ("application/json", "multipart/")
    ):
        return {}
    start = max(request.body.find(b"{"), 0)
    text = request.body[start : start + 2**20].decode(errors="replace")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def answered(status: int, value: Any) -> Answer:
    """Returns an answer of JSON."""
    return Answer(status, JSON, json.dumps(value).encode())


def failure(status: int, message: str) -> Answer:
    """Returns an error as the service tells it."""
    reason = REASONS.get(status, "unknown")
    errors = [{"message": message, "domain": "global", "reason": reason}]
    error = {"code": status, "message": message, "errors": errors}
    return answered(status, {"error": error})
