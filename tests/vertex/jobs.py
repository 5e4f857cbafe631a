"""The jobs there are, what they go through, and lists of them."""

import dataclasses
import re
import zlib
from typing import Any

from google.protobuf import field_mask_pb2
from google.protobuf.message import Message

from tests.vertex import filters, wire

FIRST_NUMBER = 4_000_000_000_000_000_000
PAGE_SIZE = 100  # Where none is asked for; also the most there is.
QUEUED, PENDING, RUNNING = 1, 2, 3
SUCCEEDED, FAILED, CANCELLING, CANCELLED, EXPIRED, PARTLY = 4, 5, 6, 7, 9, 11
ENDED = {SUCCEEDED, FAILED, CANCELLED, EXPIRED, PARTLY}
# What a client may send, but the service alone decides.
OUTPUT_ONLY = (
    *("name", "state", "create_time", "start_time", "end_time", "update_time"),
    *("error", "web_access_uris", "trials", "satisfies_pzs", "satisfies_pzi"),
)
Step = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where jobs are: of a project, in a region, of a kind as customJobs."""

    project: str
    location: str
    kind: str

    @property
    def number(self) -> str:
        """Returns the project's number, by which the service names what it makes."""
        if self.project.isdigit():
            return self.project
        return str(10**11 + zlib.crc32(self.project.encode()))

    @property
    def prefix(self) -> str:
        """Returns how the names of the jobs there begin."""
        return f"projects/{self.number}/locations/{self.location}/{self.kind}/"


class Jobs:
    """All of them, the oldest first."""

    def __init__(self) -> None:
        self._jobs: dict[str, Message] = {}
        self._steps: dict[str, list[Step]] = {}
        # The first was a job's already; it is the next one's too if there is no other.
        self._scripts: list[list[Step]] = [[{"state": "JOB_STATE_PENDING"}]]

    def script(self, steps: list[Step], job: str | None = None) -> None:
        """Sets what a job goes through: a step each time it is looked at.

        Args:
            steps: Fields of a job, which replace what it had: state, error, trials ...
            job: Name of one; None is the next that is made, or the one after it where
                that has its script, and so on. The last is of all that follow, too.

        Raises:
            wire.Refusal: If no kind of job has such fields, or there is no such job.
        """
        for step in steps:
            _check_step(step)
        if job is None:
            self._scripts.append(steps)
        else:
            self._steps[self._name_of(job)] = list(steps)

    def create(self, place: Place, job: Message) -> Message:
        """Returns the job that was made."""
        names = {field.name for field in job.DESCRIPTOR.fields}
        for field in names.intersection(OUTPUT_ONLY):
            job.ClearField(field)
        job.name = f"{place.prefix}{FIRST_NUMBER + len(self._jobs) + 1}"
        job.state = QUEUED
        job.create_time.GetCurrentTime()
        job.update_time.CopyFrom(job.create_time)
        del self._scripts[: len(self._scripts) > 1]
        self._jobs[job.name], self._steps[job.name] = job, list(self._scripts[0])
        return job

    def look(self, place: Place, number: str) -> Message:
        """Returns a job, which went one step further."""
        name = self._name_of(place.prefix + number)
        if self._steps[name]:
            _apply(self._jobs[name], self._steps[name].pop(0))
        return self._jobs[name]

    def cancel(self, place: Place, number: str) -> None:
        """Has a job end: it is cancelled when it is looked at next."""
        name = self._name_of(place.prefix + number)
        job = self._jobs[name]
        if job.state in ENDED:
            raise wire.Refusal(
                400, f"{name} has ended and cannot be cancelled.", "FAILED_PRECONDITION"
            )
        _apply(job, {"state": "JOB_STATE_CANCELLING"})
        error = {"code": 1, "message": "CANCELED"}
        self._steps[name] = [{"state": "JOB_STATE_CANCELLED", "error": error}]

    def page(
        self, place: Place, query: dict[str, str], numeric: bool
    ) -> dict[str, Any]:
        """Returns a page of a list, the newest first; nothing goes a step further."""
        keep = filters.compiled(query.get("filter", ""))
        newest = reversed(self._jobs.values())
        found = [job for job in newest if job.name.startswith(place.prefix)]
        found = [job for job in found if keep(job)]
        start, size = _number(query, "pageToken"), _number(query, "pageSize")
        end = start + min(size or PAGE_SIZE, PAGE_SIZE)
        shown = [_masked(job, query.get("readMask")) for job in found[start:end]]
        page: dict[str, Any] = {}
        if shown:  # The real service leaves out what is empty, too.
            page[place.kind] = [wire.told(job, numeric) for job in shown]
        if end < len(found):
            page["nextPageToken"] = str(end)
        return page

    def told(self) -> list[dict[str, Any]]:
        """Returns all, the newest first, as JSON."""
        return [wire.told(job) for job in reversed(self._jobs.values())]

    def _name_of(self, asked: str) -> str:
        """Returns the name of a job that is there, by its project's number."""
        _, project, rest = asked.split("/", 2)
        name = f"projects/{Place(project, '', '').number}/{rest}"
        if name not in self._jobs:
            raise wire.Refusal(404, f"The job {asked} does not exist.")
        return name


def _check_step(step: Step) -> None:
    refusals = []
    for kind in wire.JOBS:
        try:
            wire.parsed(kind, step)
        except wire.Refusal as refusal:
            refusals.append(refusal)
    if len(refusals) == len(wire.JOBS):
        raise refusals[-1]


def _apply(job: Message, step: Step) -> None:
    """Replaces the fields of a job that a step has, and keeps its times."""
    new = wire.parsed(job.name.split("/")[-2], step)
    for field, _ in new.ListFields():
        job.ClearField(field.name)
    job.MergeFrom(new)
    job.update_time.GetCurrentTime()
    if job.state == RUNNING and not job.HasField("start_time"):
        job.start_time.CopyFrom(job.update_time)
    if job.state in ENDED and not job.HasField("end_time"):
        job.end_time.CopyFrom(job.update_time)


def _number(query: dict[str, str], name: str) -> int:
    text = query.get(name) or "0"
    if not re.fullmatch(r"\d+", text):
        raise wire.Refusal(400, f"Invalid {name}: {text}")
    return int(text)


def _masked(job: Message, mask: str | None) -> Message:
    if mask is None:
        return job
    some, fields = type(job)(), field_mask_pb2.FieldMask()
    try:
        fields.FromJsonString(mask)
        fields.MergeMessage(job, some)
    except ValueError as error:
        raise wire.Refusal(400, f"Invalid readMask: {error}") from error
    return some
