"""What stands between a job and the storage: an addon of mitmproxy.

It answers requests to *.googleapis.com as `service.py` does, adds distance and faults,
and logs each request. Nothing leaves this machine: other hosts are refused. `server.py`
starts it, in an environment of its own, with these variables:

    GCS_UPSTREAM    host:port of fake-gcs-server
    GCS_SETTINGS    JSON file of `Faults`, read again whenever it has changed
    GCS_LOG         file to which each request is added, a line of JSON
"""

import asyncio
import concurrent.futures
import json
import logging
import os
import pathlib
import time
from typing import NamedTuple

from mitmproxy import http

from tests.gcs import wire
from tests.gcs.faults import Fate, Faults
from tests.gcs.service import Service

LOG = logging.getLogger(__name__)
THREADS = 32  # Requests that fake-gcs-server is asked at a time.


class _Done(NamedTuple):
    """What was done: `sent` bytes of the answer, None for none; `arrived` came in."""

    answer: wire.Answer | None
    sent: int
    arrived: int
    fault: str | None


class Proxy:
    """The addon; mitmproxy calls `request` for each, those of a connection in turn."""

    def __init__(self) -> None:
        """Begins with the settings that there are."""
        self._service = Service(os.environ["GCS_UPSTREAM"])
        self._settings = pathlib.Path(os.environ["GCS_SETTINGS"])
        self._log = pathlib.Path(os.environ["GCS_LOG"])
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._faults, self._read_at = Faults(), (0, 0)
        self._count = self._dropping_count = 0
        self._read_settings()

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answers a request, or ends its connection."""
        # If the rest fails, mitmproxy would send the request to the real service.
        flow.response = _response(wire.failure(502, "the test server failed"))
        request = _request(flow)
        if not request.host.endswith(".googleapis.com"):
            flow.response = _response(wire.failure(502, f"no way to {request.host}"))
            return
        began, act = time.time(), wire.act_of(request)
        faults, fate = self._next(act)
        done = _Done(None, 0, 0, "dropped")
        if fate is not None:
            done = await self._do(request, faults, fate)
        if done.answer is None:
            flow.kill()
        else:
            flow.response = _response(done.answer, done.sent)
        line = dict(
            time=began,
            seconds=time.time() - began,
            method=request.method,
            kind=act.kind,
            bucket=act.bucket,
            object=act.name,
            status=done.answer.status if done.answer else None,
            bytes_received=done.arrived,
            bytes_sent=done.sent,
            fault=done.fault,
        )
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    async def _do(self, request: wire.Request, faults: Faults, fate: Fate) -> _Done:
        """Does a request after its time, or what its fate leaves of that."""
        run = asyncio.get_running_loop().run_in_executor
        arrived = size = len(request.body)
        if fate.cut:
            arrived = int(fate.cut_at * size)
        await asyncio.sleep(
            faults.latency_seconds
            + (faults.slow_seconds if fate.slow else 0)
            + faults.transfer_seconds(arrived)
        )
        fault = "slow" if fate.slow else None
        if arrived < size:
            await run(self._threads, self._service.cut, request, arrived)
            return _Done(None, 0, arrived, "cut")
        if fate.error is not None:
            answer = wire.failure(fate.error, "Try again.")
            return _Done(answer, len(answer.body), arrived, "error")
        answer = await run(self._threads, self._service.answer, request, faults)
        if fate.lost or (fate.cut and not answer.body):
            return _Done(None, 0, arrived, "cut" if fate.cut else "lost")
        sent = len(answer.body)
        if fate.cut:
            sent, fault = int(fate.cut_at * sent), "cut"
        await asyncio.sleep(faults.transfer_seconds(sent))
        return _Done(answer, sent, arrived, fault)

    def _next(self, act: wire.Act) -> tuple[Faults, Fate | None]:
        """Counts a request; returns the settings and its fate, None if it is dropped."""
        self._read_settings()
        faults = self._faults
        self._count += 1
        self._dropping_count += (
            act.kind in wire.WRITES or not faults.drop_counts_writes_only
        )
        if faults.drop_from is not None and self._dropping_count >= faults.drop_from:
            return faults, None
        return faults, faults.fate(self._count)

    def _read_settings(self) -> None:
        """Reads the settings if they have changed; counting begins again."""
        about = self._settings.stat()
        if (about.st_ino, about.st_mtime_ns) == self._read_at:
            return
        self._read_at = about.st_ino, about.st_mtime_ns
        try:
            told = json.loads(self._settings.read_text(encoding="utf-8"))
            self._faults = Faults(**told)
        except (TypeError, ValueError) as error:  # Written by hand, or half written.
            LOG.error("settings left as they were: %s", error)
            return
        self._count = self._dropping_count = 0


def _request(flow: http.HTTPFlow) -> wire.Request:
    path, _, query = flow.request.path.partition("?")
    return wire.Request(
        flow.request.method,
        flow.request.pretty_host,
        path,
        query,
        {name.lower(): value for name, value in flow.request.headers.items()},
        flow.request.raw_content or b"",
    )


def _response(answer: wire.Answer, sent: int | None = None) -> http.Response:
    """Returns a response of mitmproxy.

    Args:
        answer: What is answered.
        sent: How many bytes of the body are sent before the connection ends, None for
            all of them.
    """
    # TensorFlow knows headers only as the service spells them: Location, Range.
    headers = [(name.title().encode(), text.encode()) for name, text in answer.headers]
    response = http.Response.make(answer.status, b"", headers)
    response.raw_content = answer.body[:sent]
    response.headers["Content-Length"] = str(len(answer.body))
    if answer.status == 204:
        del response.headers["Content-Length"]
    if len(answer.body[:sent]) < len(answer.body):
        response.headers["Connection"] = "close"
    return response


addons = [Proxy()] if "GCS_UPSTREAM" in os.environ else []
