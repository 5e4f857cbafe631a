"""A Google Cloud Storage of one's own on this machine, with faults and distance.

    with server.serve() as gcs:
        gcs.make_bucket("data")
        gcs.upload("photographs", "gs://data/pets")
        gcs.set_faults(latency_seconds=0.03, error_share=0.1)
        subprocess.run(command, env={**os.environ, **gcs.environment})

fake-gcs-server keeps the objects, mitmproxy stands before it with `proxy.py`: TensorFlow
and Google's client libraries run their real code over real connections.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.gcs import programs
from tests.gcs.faults import Faults


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server. What it is asked here goes past distance, faults and log.

    Attributes:
        environment: Variables that lead a child process to it.
        proxy: host:port, through which https://storage.googleapis.com is this server.
        authority: File of the certificate by which it is believed to be.
        settings: JSON file of `Faults`, which may be changed by hand.
        log: File of a line of JSON for each request.
        storage: http://host:port of fake-gcs-server itself.
    """

    environment: dict[str, str]
    proxy: str
    authority: str
    settings: pathlib.Path
    log: pathlib.Path
    storage: str

    def set_faults(self, **faults: Any) -> None:
        """Replaces all of `Faults` from the next request on; with none, all is well."""
        _write_settings(self.settings, Faults(**faults))

    def requests(self, bucket: str | None = None) -> list[dict[str, Any]]:
        """Returns the requests so far, all or those of a bucket, in the order they ended.

        Each has time, in seconds since the epoch, and seconds it took; method; kind, of
        `wire.Act`; bucket and object; status, None where there was no answer;
        bytes_received and bytes_sent, of the bodies; fault, one of dropped, cut, lost,
        error, slow or None.
        """
        lines = self.log.read_text(encoding="utf-8").splitlines()
        told = [json.loads(line) for line in lines]
        return [one for one in told if bucket in (None, one["bucket"])]

    def make_bucket(self, bucket: str) -> None:
        """Makes a bucket; its name has at least three letters.

        Raises:
            urllib.error.HTTPError: If there is one of that name.
        """
        self._call("POST", "/storage/v1/b", json.dumps({"name": bucket}).encode())

    def delete_bucket(self, bucket: str) -> None:
        """Deletes a bucket with all that is in it."""
        for name in self.names(bucket):
            self.delete(f"gs://{bucket}/{name}")
        self._call("DELETE", f"/storage/v1/b/{bucket}")

    def put(self, path: str, data: bytes) -> None:
        """Writes the object gs://bucket/name."""
        bucket, name = _split(path)
        query = urllib.parse.urlencode(dict(uploadType="media", name=name))
        self._call("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", data)

    def get(self, path: str) -> bytes:
        """Returns what the object gs://bucket/name holds."""
        return self._call("GET", f"{_address(path)}?alt=media")

    def delete(self, path: str) -> None:
        """Deletes the object gs://bucket/name."""
        self._call("DELETE", _address(path))

    def upload(self, folder: pathlib.Path | str, path: str) -> None:
        """Copies the files of a folder, and of those in it, below gs://bucket/prefix."""
        for file in sorted(pathlib.Path(folder).rglob("*")):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                self.put(f"{path.rstrip('/')}/{name}", file.read_bytes())

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Returns the names of the objects that begin so, in their order."""
        query = urllib.parse.urlencode(dict(prefix=prefix, maxResults=10**6))
        found = json.loads(self._call("GET", f"/storage/v1/b/{bucket}/o?{query}"))
        return sorted(item["name"] for item in found.get("items", []))

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Returns the objects whose names begin so: what they hold, by name."""
        names = self.names(bucket, prefix)
        return {name: self.get(f"gs://{bucket}/{name}") for name in names}

    def _call(self, method: str, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.storage + path, data, method=method)
        with programs.DIRECTLY.open(request, timeout=programs.CALL_SECONDS) as reply:
            return reply.read()


@contextlib.contextmanager
def serve(**faults: Any) -> Iterator[Server]:
    """Runs a server with `Faults` on free ports of this machine, and ends it.

    Raises:
        RuntimeError: If it does not start; with what it said.
    """
    with contextlib.ExitStack() as ending:
        scratch = pathlib.Path(ending.enter_context(tempfile.TemporaryDirectory()))
        settings, log = scratch / "faults.json", scratch / "requests.jsonl"
        _write_settings(settings, Faults(**faults))
        log.touch()
        storage, proxy = (f"127.0.0.1:{port}" for port in programs.free_ports(2))
        ending.enter_context(programs.storage(storage, scratch))
        variables = dict(
            GCS_UPSTREAM=storage,
            GCS_SETTINGS=str(settings),
            GCS_LOG=str(log),
        )
        ending.enter_context(programs.proxy(proxy, scratch, variables))
        authority = str(scratch / "mitmproxy-ca-cert.pem")
        environment = {
            "CURL_CA_BUNDLE": authority,
            "REQUESTS_CA_BUNDLE": authority,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "NO_GCE_CHECK": "true",
        }
        # Some programs know the one, some the other; all that is asked of other hosts
        # goes to the proxy as well, which refuses it.
        for variable in ("https_proxy", "http_proxy", "all_proxy"):
            environment[variable] = environment[variable.upper()] = f"http://{proxy}"
        environment["no_proxy"] = environment["NO_PROXY"] = "localhost,127.0.0.1,::1"
        yield Server(environment, proxy, authority, settings, log, f"http://{storage}")


def _write_settings(path: pathlib.Path, faults: Faults) -> None:
    """Writes them whole: the proxy may read them at any moment."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(dataclasses.asdict(faults), indent=2), encoding="utf-8")
    os.replace(new, path)


def _split(path: str) -> tuple[str, str]:
    """Returns bucket and name of gs://bucket/name."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return bucket, name


def _address(path: str) -> str:
    """Returns the address of the object gs://bucket/name."""
    bucket, name = _split(path)
    return f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
