"""A Vertex AI of one's own on this machine, for the tests of what orders jobs.

    with server.serve() as vertex:
        vertex.script("JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED")
        subprocess.run([*command, f"--api_endpoint={vertex.address}"])
        [job] = vertex.jobs()

It runs in .venv-deploy, where Google's SDK is; here nothing of that is imported. It
checks what it is sent by the SDK's own protobuf types and by the rules of the service.
"""

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.gcs import programs

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PYTHON = REPOSITORY / ".venv-deploy" / "bin" / "python"  # `make install` makes it.
Json = dict[str, Any]


def missing() -> str | None:
    """Returns why there can be no server here, None where there can be one."""
    return (
        None if PYTHON.exists() else "there is no .venv-deploy; make install makes it"
    )


@dataclasses.dataclass(frozen=True)
class Service:
    """A running service. `kind` is customJobs or hyperparameterTuningJobs.

    Attributes:
        address: http://127.0.0.1:PORT, the api_endpoint of a client that talks REST.
    """

    address: str

    def jobs(self, kind: str | None = None) -> list[Json]:
        """Returns the jobs there are, all or of a kind, the newest first.

        Enumerations are told by name. To be told so takes no job a step further.
        """
        told = self._control("GET", "jobs")
        return [job for job in told if kind is None or f"/{kind}/" in job["name"]]

    def requests(self, method: str | None = None) -> list[Json]:
        """Returns the requests since the reset, all or of a method, the oldest first.

        Each has method; path; query; headers, their names in lower case and without
        those that hold secrets; body, the JSON that was sent, or None; canonical, as of
        `canonical`, of a job that could be read, whether it was made or not; status,
        None where the connection ended without; fault, what was set, or None; time, in
        seconds since the epoch.
        """
        told = self._control("GET", "requests")
        return [one for one in told if method in (None, one["method"])]

    def canonical(self, kind: str, value: Json) -> Json:
        """Returns what is the same for all spellings of one job in JSON.

        Returns:
            value: the job as protobuf's own JSON, enumerations by name; base64: its
            bytes. Both are compared with those of `requests`.

        Raises:
            ValueError: If the SDK knows no such job; names the field.
        """
        return self._control("POST", f"canonical/{kind}", value)

    def script(self, *steps: str | Json, job: str | None = None) -> None:
        """Sets what a job goes through: a step each time it is looked at, by GET.

        A job is made JOB_STATE_QUEUED and keeps the last step; without a script that is
        JOB_STATE_PENDING. To be listed takes it no step further. Times are added.

        Args:
            steps: Each is a state, or the fields that change: state, error, trials ...
            job: Name of a job that there is. Without, each call is for one more of the
                jobs that are made, and the last for all that follow, too.
        """
        fields = [{"state": step} if isinstance(step, str) else step for step in steps]
        self._control("POST", "script", {"steps": fields, "job": job})

    def faults(
        self,
        what: int | str,
        times: int = 1,
        *,
        region: str | None = None,
        method: str | None = None,
        message: str | None = None,
    ) -> None:
        """Adds a fault of the next requests; the one that was set first comes first.

        Args:
            what: The status they are answered with, and nothing is done; "dropped":
                nothing is done and the connection ends without an answer; "lost": the
                same, but it is done, as a job is made.
            times: Of how many requests.
            region: Only of those to this region.
            method: Only of those with this method.
            message: What the error says; None is what the real service would say.
        """
        told = dict(what=what, times=times, region=region, method=method)
        self._control("POST", "faults", told | {"message": message})

    def reset(self) -> None:
        """Forgets all jobs, requests, scripts and faults."""
        self._control("POST", "reset")

    def call(
        self, method: str, path: str, value: Any = None, **query: str
    ) -> tuple[int, Json]:
        """Asks as any client would; returns status and answer, of errors too."""
        url = f"{self.address}{path}"
        if query:
            url += f"?{urllib.parse.urlencode(query)}"
        data = None if value is None else json.dumps(value).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with programs.DIRECTLY.open(
                request, timeout=programs.CALL_SECONDS
            ) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def _control(self, method: str, what: str, value: Any = None) -> Any:
        status, told = self.call(method, f"/control/{what}", value)
        if status != 200:
            raise ValueError(told["error"]["message"])
        return told


@contextlib.contextmanager
def serve() -> Iterator[Service]:
    """Runs a service on a free port of this machine, and ends it.

    Raises:
        RuntimeError: If it does not start; with what it said.
    """
    command = [str(PYTHON), "-m", "tests.vertex"]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                said.seek(0)
                raise RuntimeError(
                    f"tests.vertex did not start:\n{said.read()[-2000:]}"
                )
            yield Service(address)
        finally:
            programs.end(process)
