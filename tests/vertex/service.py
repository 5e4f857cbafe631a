"""The service: which request asks for what, and what tests may ask and set."""

import copy
import dataclasses
import json
import re
import threading
import time
from typing import Any

from tests.vertex import faults, jobs, rules, tuning_rules, wire

PATH = re.compile(
    r"/v1/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)"
    r"/(?P<kind>customJobs|hyperparameterTuningJobs)"
    r"(/(?P<number>[^/:]+)(?P<cancel>:cancel)?)?"
)
REGION = re.compile(r"[a-z]+-[a-z]+\d+")
# Answers in which enumerations are numbers: the client libraries ask for it.
NUMERIC = "json;enum-encoding=int"
# How it is asked for: of any method, and of a list.
ALT, OF_LIST = {"$alt"}, {"pageSize", "pageToken", "filter", "readMask"}


class Vertex:
    """All regions of all projects, on one address; nothing is charged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._jobs = jobs.Jobs()
        self._faults: list[faults.Fault] = []
        self._requests: list[dict[str, Any]] = []

    def answer(self, request: wire.Request) -> tuple[int, Any] | None:
        """Returns status and JSON; None where the connection ends without."""
        with self._lock:
            if request.path.startswith("/control/"):
                return _tried(self._controlled, request)
            record = dataclasses.asdict(request) | {
                "time": time.time(),
                "body": _json_or_none(request.body),
                "canonical": None,
                "status": None,
                "fault": None,
            }
            self._requests.append(record)
            fault = faults.take(self._faults, request)
            record["fault"] = fault and fault.what
            if fault and fault.what == "dropped":
                return None
            if fault and fault.what != "lost":
                refusal = fault.refusal(request)
                record["status"] = refusal.status
                return refusal.status, wire.error(refusal)
            status, value = _tried(lambda asked: self._route(asked, record), request)
            if fault:
                return None
            record["status"] = status
            return status, value

    def _route(self, request: wire.Request, record: dict[str, Any]) -> Any:
        found = PATH.fullmatch(request.path)
        if found is None:
            raise wire.Refusal(404, f"There is no method at {request.path}.")
        if not REGION.fullmatch(found["location"]):
            raise wire.Refusal(404, f"Location {found['location']} is not found.")
        place = jobs.Place(found["project"], found["location"], found["kind"])
        numeric = request.query.get("$alt") == NUMERIC
        match request.method, found["number"], found["cancel"]:
            case "POST", None, None:
                _only(request, ALT)
                job = self._create(place, request, record)
            case "GET", None, None:
                _only(request, ALT | OF_LIST)
                return self._jobs.page(place, request.query, numeric)
            case "GET", str(number), None:
                _only(request, ALT)
                job = self._jobs.look(place, number)
            case "POST", str(number), str():
                _only(request, ALT)
                self._jobs.cancel(place, number)
                return {}
            case _:
                raise wire.Refusal(404, f"{request.method} is not answered there.")
        return wire.told(job, numeric)

    def _create(
        self, place: jobs.Place, request: wire.Request, record: dict[str, Any]
    ) -> Any:
        job = wire.parsed(place.kind, _json(request.body))
        record["canonical"] = wire.canonical(job)
        of_kind = rules if place.kind == "customJobs" else tuning_rules
        of_kind.check(job, place.location)
        return self._jobs.create(place, job)

    def _controlled(self, request: wire.Request) -> Any:
        """Returns what a test gets; tells it of what it asked wrongly."""
        try:
            return self._control(request)
        except (TypeError, ValueError) as error:
            raise wire.Refusal(400, f"{type(error).__name__}: {error}") from error

    def _control(self, request: wire.Request) -> Any:
        match request.method, request.path.split("/")[2:]:
            case "GET", ["requests"]:
                return copy.deepcopy(self._requests)  # Told after the lock is free.
            case "GET", ["jobs"]:
                return self._jobs.told()
            case "POST", ["reset"]:
                self._reset()
            case "POST", ["faults"]:
                self._faults.append(faults.Fault(**_json(request.body)))
            case "POST", ["script"]:
                self._jobs.script(**_json(request.body))
            case "POST", ["canonical", kind] if kind in wire.JOBS:
                return wire.canonical(wire.parsed(kind, _json(request.body)))
            case _:
                raise wire.Refusal(404, f"no such control: {request.path}")
        return {}


def _tried(do: Any, request: wire.Request) -> tuple[int, Any]:
    """Returns status and JSON of what comes back, or of the refusal."""
    try:
        return 200, do(request)
    except wire.Refusal as refusal:
        return refusal.status, wire.error(refusal)


def _only(request: wire.Request, names: set[str]) -> None:
    """Refuses what is asked for and not known, as the real service does."""
    for name in sorted(set(request.query) - names):
        raise wire.Refusal(
            400,
            f'Invalid JSON payload received. Unknown name "{name}": '
            "Cannot bind query parameter.",
        )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise wire.Refusal(400, f"Invalid JSON payload received. {error}") from error


def _json_or_none(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
