"""Vertex AI's job service: jobs go in and come out as plain dicts of its REST API.

Google's SDK is imported here alone, when it is first needed.
"""

import re
import urllib.parse
from typing import Any

from deploy import errors

CUSTOM, TUNING = "customJobs", "hyperparameterTuningJobs"
KINDS = {CUSTOM: "job", TUNING: "tuning job"}
ENDED = {
    *("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"),
    *("JOB_STATE_EXPIRED", "JOB_STATE_PARTIALLY_SUCCEEDED"),
}
CALL_SECONDS = 120.0
CONSOLE = "https://console.cloud.google.com"
Job = dict[str, Any]


class Service:
    """The jobs of one project in one region.

    Args:
        project: Id of the project.
        region: Name of the region.
        endpoint: Address of the API where it is not the region's own.

    Raises:
        ValueError: If the SDK is not installed.
        Failure: If there are no credentials.
    """

    def __init__(self, project: str, region: str, endpoint: str | None = None) -> None:
        try:
            from google.api_core import client_options
            from google.auth import credentials
            from google.cloud import aiplatform_v1
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{error.name} is not installed; to order jobs: pip install "
                "'segtrainer[deploy]'"
            ) from None
        self._sdk: Any = aiplatform_v1
        self.project, self.region = project, region
        self.parent = f"projects/{project}/locations/{region}"
        address = endpoint or host(region)
        # No credentials travel where anybody can read them.
        anonymous = None
        if address.startswith("http://"):
            anonymous = credentials.AnonymousCredentials()  # type: ignore[no-untyped-call]
        with errors.in_one_line("connecting"):
            self._client: Any = aiplatform_v1.JobServiceClient(
                transport="rest",  # What is shown by --dry_run is what is sent.
                credentials=anonymous,
                client_options=client_options.ClientOptions(api_endpoint=address),
            )

    def create(self, kind: str, request: Job) -> Job:
        """Returns the job that was made. It is asked once: a second might be made.

        Raises:
            NoQuota: If the region has no quota for it.
            Failure: If it is refused, or nobody knows whether it was made.
        """
        job = self.message(kind, request)
        with errors.in_one_line(
            "ordering",
            f"python -m deploy.jobs list {_where(self)}",
            "roles/aiplatform.user in the project, and roles/iam.serviceAccountUser on a "
            "service_account",
        ):
            if kind == CUSTOM:
                made = self._client.create_custom_job(
                    parent=self.parent, custom_job=job, timeout=CALL_SECONDS, retry=None
                )
            else:
                made = self._client.create_hyperparameter_tuning_job(
                    parent=self.parent,
                    hyperparameter_tuning_job=job,
                    timeout=CALL_SECONDS,
                    retry=None,
                )
        return _plain(made)

    def get(self, name: str, patience_seconds: float = 0.0) -> Job:
        """Returns a job by its whole name.

        Args:
            name: projects/P/locations/R/KIND/ID.
            patience_seconds: How long to ask again while the service does not answer.

        Raises:
            NotThere: If there is no such job.
            Failure: If it cannot be looked at.
        """
        get = (
            self._client.get_custom_job
            if kind_of(name) == CUSTOM
            else self._client.get_hyperparameter_tuning_job
        )
        retry = _retry(patience_seconds) if patience_seconds else None
        with errors.in_one_line("looking at the job"):
            return _plain(get(name=name, timeout=CALL_SECONDS, retry=retry))

    def newest(
        self, kind: str, limit: int, display_name: str | None = None
    ) -> list[Job]:
        """Returns the newest jobs of a kind, the newest first.

        Args:
            kind: CUSTOM or TUNING.
            limit: How many at the most.
            display_name: Only those of this name.
        """
        request: Job = {"parent": self.parent, "page_size": min(limit, 100)}
        if display_name is not None:
            request["filter"] = f'display_name="{display_name}"'
        with errors.in_one_line("listing jobs"):
            if kind == CUSTOM:
                pages = self._client.list_custom_jobs(request, timeout=CALL_SECONDS)
            else:
                pages = self._client.list_hyperparameter_tuning_jobs(
                    request, timeout=CALL_SECONDS
                )
            return [_plain(job) for _, job in zip(range(limit), pages, strict=False)]

    def cancel(self, name: str) -> None:
        """Asks the service to end a job; it takes a while to do so."""
        with errors.in_one_line("cancelling"):
            if kind_of(name) == CUSTOM:
                self._client.cancel_custom_job(name=name, timeout=CALL_SECONDS)
            else:
                self._client.cancel_hyperparameter_tuning_job(
                    name=name, timeout=CALL_SECONDS
                )

    def message(self, kind: str, request: Job) -> Any:
        """Returns a request in the SDK's own type, which knows every field.

        Raises:
            ValueError: If that does not know a value.
        """
        from google.protobuf import json_format

        types = self._sdk.CustomJob, self._sdk.HyperparameterTuningJob
        message = types[kind == TUNING]()
        try:
            json_format.ParseDict(request, message._pb)
        except json_format.ParseError as error:
            named = re.search(r"value (\S+) for enum type \S+?(\w+) at", str(error))
            what = f"{named[1]} is no {named[2]}" if named else errors.words(error)
            raise ValueError(
                f"{what} that this SDK knows; correct it, or take a newer "
                "google-cloud-aiplatform"
            ) from None
        return message


def host(region: str) -> str:
    """Returns the address of a region's API."""
    return f"{region}-aiplatform.googleapis.com"


def kind_of(name: str) -> str:
    """Returns the kind of a job by its whole name."""
    return name.split("/")[-2]


def state(job: Job) -> str:
    """Returns the state in plain words: queued, running, succeeded, ..."""
    words = job.get("state", "JOB_STATE_UNSPECIFIED").removeprefix("JOB_STATE_")
    return str(words).lower().replace("_", " ")


def out_of_stock(job: Job) -> bool:
    """Returns whether a job failed because the region had no machines for it.

    By its words: the code of such an error is shared with others, as memory's.
    """
    error = job.get("error", {})
    text = error.get("message", "").lower()
    return job.get("state") == "JOB_STATE_FAILED" and (
        "stockout" in re.sub(r"[ _-]", "", text) or "resources are insufficient" in text
    )


def console_address(job: Job) -> str:
    """Returns the page of a job in the console, the same for both kinds.

    Source: google-cloud-aiplatform 2.7.0, `_dashboard_uri` and `_job_type` of jobs.py.
    """
    _, project, _, region, _, number = job["name"].split("/")
    page = f"agent-platform/locations/{region}/training/{number}"
    return f"{CONSOLE}/{page}?project={project}"


def logs_address(job: Job) -> str:
    """Returns the page of a job's log lines, of all its replicas, in the console.

    Source: cloud.google.com/vertex-ai/docs/training/monitor-view-logs; the resource of
    a job's entries is ml_job, with its number.
    """
    project, number = job["name"].split("/")[1], job["name"].split("/")[-1]
    query = f'resource.type="ml_job"\nresource.labels.job_id="{number}"'
    return f"{CONSOLE}/logs/query;query={urllib.parse.quote(query)}?project={project}"


def _where(service: Service) -> str:
    return f"--project={service.project} --region={service.region}"


def _plain(message: Any) -> Job:
    from google.protobuf import json_format

    plain: Job = json_format.MessageToDict(message._pb)
    return plain


def _retry(seconds: float) -> Any:
    """Returns what asks again, ever less often, while it may help."""
    from google.api_core import exceptions, retry
    from google.auth import exceptions as auth
    from requests import exceptions as lost

    passing = (
        *(exceptions.ServerError, exceptions.TooManyRequests),
        *(lost.ConnectionError, lost.Timeout, auth.TransportError),
    )
    return retry.Retry(
        retry.if_exception_type(*passing), initial=1.0, maximum=60.0, timeout=seconds
    )
