"""Looks after the jobs of a project in a region: list, show, wait, logs, cancel.

python -m deploy.jobs list --project=P --region=R
python -m deploy.jobs wait JOB --project=P --region=R
"""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence

from deploy import command, errors, sending, service, trials
from deploy.order import Asking
from deploy.service import Job, Service
from trainer import flags
from trainer.flags import setting

# Of a job, and of what is looked for by name: nothing that means more in an address or
# a filter.
WHOLE_NAME = (
    rf"projects/[a-z0-9.:-]+/locations/[a-z0-9-]+/({'|'.join(service.KINDS)})/[0-9]+"
)
NAME = r"[A-Za-z0-9_. -]+"
ACTIONS = ("list", "show", "wait", "logs", "cancel")
TIMES = {"created": "createTime", "started": "startTime", "ended": "endTime"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looking:
    """Where to look."""

    # fmt: off
    project: str | None = setting("Looking", None, "Google Cloud project; then GOOGLE_CLOUD_PROJECT.")
    region: str | None = setting("Looking", None, "Region of the jobs; then GOOGLE_CLOUD_REGION.")
    limit: int = setting("Looking", 20, "With list: jobs at the most.", low=1)
    json: bool = setting("Looking", False, "With show: all that the service says of the job, as JSON.")
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        if self.region and not re.fullmatch(r"[a-z0-9-]+", self.region):
            raise ValueError(
                f"region must be a region, such as us-central1, got {self.region!r}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    flagged = (i for i, arg in enumerate(args[:2]) if arg.startswith("-"))
    words = args[: next(flagged, 2)]

    def look(how: Looking, asking: Asking) -> int:
        return _look(how, asking, words)

    about = (
        "Looks after jobs: python -m deploy.jobs ACTION [JOB]\n\n"
        "  list         the newest jobs\n"
        "  show JOB     what it is and how it stands; the trials of a search\n"
        "  wait JOB     until it has ended; 1 unless it succeeded\n"
        "  logs JOB     where its log is\n"
        "  cancel JOB   ends it\n\n"
        "JOB is its number, its whole name, or its job_name: the newest of that name."
    )
    return command.run(about, look, (Looking, Asking), args[len(words) :])


def _look(how: Looking, asking: Asking, words: Sequence[str]) -> int:
    action, *rest = words or ("",)
    if action not in ACTIONS:
        raise ValueError(
            f"the action comes first: one of {', '.join(ACTIONS)}, got {action!r}"
        )
    if (action == "list") == bool(rest):
        needs = "no JOB" if rest else "a JOB: its number, its name or its job_name"
        raise ValueError(f"{action} takes {needs}")
    whole = bool(rest) and re.fullmatch(WHOLE_NAME, rest[0])
    named = rest[0].split("/") if whole else []
    if rest and not whole and not re.fullmatch(NAME, rest[0]):
        raise ValueError(
            "JOB must be a number, a job_name, or "
            f"projects/P/locations/REGION/KIND/NUMBER, got {rest[0]!r}"
        )
    project = named[1] if named else how.project
    region = named[3] if named else how.region
    for name, value in (("project", project), ("region", region)):
        if not value:
            raise ValueError(f"{name} must be given: --{name}={name.upper()}")
    there = Service(str(project), str(region), asking.api_endpoint)
    if action == "list":
        return _list(there, how.limit)
    job = _find(there, rest[0])
    if action == "show":
        return _show(job, how.json)
    if action == "wait":
        return _wait(there, job, asking.poll_seconds)
    return _logs(there, job) if action == "logs" else _cancel(there, job)


def _list(there: Service, limit: int) -> int:
    found = [job for kind in service.KINDS for job in there.newest(kind, limit)]
    found.sort(key=lambda job: str(job.get("createTime", "")), reverse=True)
    rows = [["number", "kind", "job_name", "state", "created"]]
    for job in found[:limit]:
        number, kind = job["name"].split("/")[-1], service.kind_of(job["name"])
        created = job.get("createTime", "")[:19].replace("T", " ")
        shown = [number, service.KINDS[kind], job["displayName"], service.state(job)]
        rows.append([*shown, created])
    print(trials.columns(rows))
    return 0


def _find(there: Service, job: str) -> Job:
    """Returns a job by its whole name, its number, or the newest by its job_name."""
    if "/" in job:
        return there.get(job)
    if job.isdigit():
        for kind in service.KINDS:
            try:
                return there.get(f"{there.parent}/{kind}/{job}")
            except errors.NotThere:
                continue
    found = [one for kind in service.KINDS for one in there.newest(kind, 1, job)]
    if not found:
        raise errors.NotThere(
            f"no job {job} in {there.region} of {there.project}; python -m deploy.jobs "
            "list shows what is there"
        )
    return max(found, key=lambda one: str(one.get("createTime", "")))


def _show(job: Job, as_json: bool) -> int:
    if as_json:
        print(json.dumps(job, indent=2))
        return 0
    spec = job.get("jobSpec") or job.get("trialJobSpec") or {}
    said = job.get("error", {}).get("message")
    rows = [
        ["job", job["name"]],
        ["job_name", job["displayName"]],
        ["state", service.state(job)],
        *([["error", " ".join(said.split())]] if said else []),
        *([key, job[name]] for key, name in TIMES.items() if name in job),
        ["writes to", spec.get("baseOutputDirectory", {}).get("outputUriPrefix", "-")],
        ["console", service.console_address(job)],
        ["log", service.logs_address(job)],
    ]
    print(trials.columns(rows))
    if service.kind_of(job["name"]) == service.TUNING:
        print(f"\n{trials.summary(job)}")
    return 0


def _wait(there: Service, job: Job, poll_seconds: float) -> int:
    job = sending.wait(there, job, poll_seconds)
    if service.kind_of(job["name"]) == service.TUNING:
        print(trials.summary(job))
    return sending.exit_code(job)


def _logs(there: Service, job: Job) -> int:
    print(service.logs_address(job))
    number, kind = job["name"].split("/")[-1], service.kind_of(job["name"])
    group = "custom-jobs" if kind == service.CUSTOM else "hp-tuning-jobs"
    command.note(
        f"as they come: gcloud ai {group} stream-logs {number} "
        f"--project={there.project} --region={there.region}"
    )
    return 0


def _cancel(there: Service, job: Job) -> int:
    if job.get("state") in service.ENDED:
        raise ValueError(f"{job['displayName']} has ended: {service.state(job)}")
    there.cancel(job["name"])
    print(f"{job['name']} is being cancelled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
