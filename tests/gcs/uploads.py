"""Uploads that come in parts, of which the service keeps what arrived."""

import dataclasses
import json
import re
import uuid
from typing import Any

from tests.gcs.wire import Answer, Request, described, failure

# A part that is not the last, or is cut, is kept in multiples of this.
# Source: cloud.google.com/storage/docs/performing-resumable-uploads
CHUNK = 256 * 1024
PART = re.compile(r"bytes (?:(?P<first>\d+)-(?P<last>\d+)|\*)/(?P<total>\d+|\*)")


@dataclasses.dataclass
class Session:
    """One upload.

    Attributes:
        bucket: Where it goes.
        metadata: Name, type and more of the object, as the service stores them.
        generation_match: The precondition it was begun with.
        parts: What arrived.
        answer: What was answered when all had arrived; None before.
    """

    bucket: str
    metadata: dict[str, Any]
    generation_match: str | None
    parts: list[bytes] = dataclasses.field(default_factory=list)
    answer: Answer | None = None

    def length(self) -> int:
        """Returns how much has arrived, bytes."""
        return sum(map(len, self.parts))

    def keep(self, first: int, part: bytes, is_all: bool) -> None:
        """Keeps of a part that begins at byte `first` what the service would."""
        end = first + len(part)
        if not is_all:
            end = end // CHUNK * CHUNK
        # What was kept before is not taken a second time.
        self.parts.append(part[self.length() - first : max(end - first, 0)])

    def so_far(self) -> Answer:
        """Returns the answer to whether all has arrived: 308, and how much has."""
        length = self.length()
        return Answer(308, [("range", f"bytes=0-{length - 1}")] if length else [], b"")


def opened(request: Request, bucket: str, name: str) -> Session:
    """Returns the upload that a request begins."""
    metadata = described(request)
    kind = request.headers.get("x-upload-content-type")
    kind = kind or metadata.get("contentType") or "application/octet-stream"
    metadata |= {"name": name, "contentType": kind}
    return Session(bucket, metadata, request.asked("ifGenerationMatch"))


def take(session: Session, request: Request) -> Answer | None:
    """Takes the part that a request brings, or its question how much has arrived.

    Returns:
        The answer; None when all has arrived.
    """
    told = request.headers.get("content-range")
    if told is None:
        session.keep(0, request.body, is_all=True)
        return None
    part = PART.fullmatch(told)
    if part is None:
        return failure(400, f"Failed to parse Content-Range header: {told}")
    total = None if part["total"] == "*" else int(part["total"])
    if part["first"] is not None:
        first, last = int(part["first"]), int(part["last"])
        have = session.length()
        if first > have or last + 1 - first != len(request.body):
            return failure(400, f"expected a part from byte {have}, got {told}")
        session.keep(first, request.body, is_all=last + 1 == total)
    return None if session.length() == total else session.so_far()


def keep_cut(session: Session, request: Request, arrived: int) -> None:
    """Keeps of a part what had arrived, in bytes, when its connection was cut."""
    part = PART.fullmatch(request.headers.get("content-range", "bytes 0-0/*"))
    if part is None or part["first"] is None:
        return
    first = int(part["first"])
    if session.answer is None and first <= session.length():
        session.keep(first, request.body[:arrived], is_all=False)


def whole(session: Session) -> tuple[dict[str, str], bytes]:
    """Returns an upload that is all there as the headers and body of a single one."""
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\ncontent-type: application/json\r\n\r\n"
        f"{json.dumps(session.metadata)}\r\n"
        f"--{boundary}\r\ncontent-type: {session.metadata['contentType']}\r\n\r\n"
    )
    # One copy: these may be many megabytes.
    body = b"".join([head.encode(), *session.parts, f"\r\n--{boundary}--".encode()])
    return {"content-type": f"multipart/related; boundary={boundary}"}, body
