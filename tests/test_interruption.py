"""A notice to stop is heard at once, and the process leaves in time."""

import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest

from trainer import interruption

# Computes without a look at Python's signals, as TensorFlow does, when told to.
DEAF = """
import signal, sys, time
from trainer import interruption, terminal

environ = {{"NO_GCE_CHECK": "true"}}
with interruption.listening({grace}, environ, terminal.last_line) as notice:
    # A library takes the signal for itself, as TensorFlow's strategies do.
    signal.signal(signal.SIGTERM, lambda *_: print("swallowed", flush=True))
    notice.started(lambda: "step-00000007 is kept")
    print("ready", flush=True)
    while notice.reason is None:
        time.sleep(0.01)
    print("told by", notice.reason, flush=True)
    time.sleep({busy})
    sys.exit(notice.code)
"""


def run(signals, grace=60.0, busy=0.0):
    """Returns the exit code, what was printed, and the seconds since the first signal."""
    code = DEAF.format(grace=grace, busy=busy)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        for number in signals:
            process.send_signal(number)
            heard = process.stdout.readline() if number is signals[0] else ""
            assert heard in ("", f"told by {number.name}\n")
        _, err = process.communicate(timeout=30)
    return process.returncode, err.splitlines(), time.monotonic() - began


@pytest.fixture(autouse=True)
def heard():
    """Lets children hear SIGINT, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


SIGTERM, SIGINT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(("number", "code"), [(SIGTERM, 143), (SIGINT, 130)])
def test_a_signal_is_told_to_the_run_which_leaves_by_itself(number, code):
    assert run([number])[0] == code


def test_a_second_signal_leaves_at_once():
    returned, err, seconds = run([SIGTERM, SIGTERM], busy=20)
    assert returned == 143 and seconds < 10
    assert err[-1] == (
        "segtrainer: interrupted (SIGTERM, then SIGTERM); step-00000007 is kept"
    )


def test_a_run_that_cannot_save_in_time_leaves_without():
    returned, err, seconds = run([SIGTERM], grace=1.5, busy=20)
    assert returned == 143 and 1 < seconds < 10
    assert err[-1] == (
        "segtrainer: interrupted (SIGTERM, not saved in 1.5 seconds); step-00000007 is "
        "kept"
    )


def test_in_a_container_of_a_job_the_last_line_is_an_entry_of_the_log(monkeypatch):
    monkeypatch.setenv("CLUSTER_SPEC", "{}")
    _, err, _ = run([SIGTERM, SIGTERM], busy=20)
    assert json.loads(err[-1]) == {
        "severity": "ERROR",
        "message": "interrupted (SIGTERM, then SIGTERM); step-00000007 is kept",
    }


class Metadata(http.server.BaseHTTPRequestHandler):
    """Answers as Google Cloud's metadata server does."""

    said: ClassVar[dict[str, str]] = {}

    def do_GET(self):
        """Answers."""
        assert self.headers["Metadata-Flavor"] == "Google"
        assert self.path.startswith("/computeMetadata/v1/instance/")
        self.send_response(200)
        self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        self.wfile.write(self.said[self.path.rsplit("/", 1)[1]].encode())

    def log_message(self, *_):
        """Keeps quiet."""


@pytest.fixture
def metadata(monkeypatch):
    """Returns the settings of a metadata server, and what it says."""
    said = {"preempted": "FALSE", "maintenance-event": "NONE"}
    monkeypatch.setattr(Metadata, "said", said)
    monkeypatch.setattr(interruption, "METADATA_SECONDS", 0.1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"GCE_METADATA_HOST": f"127.0.0.1:{server.server_port}"}, said
        server.shutdown()


@pytest.mark.parametrize(("key", "value"), interruption.NOTICES.items())
def test_what_the_metadata_server_announces_is_told_to_the_run(metadata, key, value):
    environ, said = metadata
    with interruption.listening(60, environ, str) as notice:
        notice.started(lambda: "")
        time.sleep(0.5)
        assert notice.reason is None
        said[key] = value
        give_up = time.monotonic() + 10
        while notice.reason is None and time.monotonic() < give_up:
            time.sleep(0.01)
    assert (notice.reason, notice.code) == (f"{key} is {value}", 143)


@pytest.mark.parametrize(("key", "value"), interruption.NOTICES.items())
def test_what_was_announced_before_the_run_is_waited_for(metadata, key, value):
    environ, said = metadata
    said[key] = value
    with interruption.listening(60, environ, str) as notice:
        notice.started(lambda: "")
        time.sleep(0.8)
        assert notice.reason is None  # Else a restart would leave again and again.
        said[key] = "NONE"
        time.sleep(0.8)
        said[key] = value
        give_up = time.monotonic() + 10
        while notice.reason is None and time.monotonic() < give_up:
            time.sleep(0.01)
    assert notice.reason == f"{key} is {value}"


def test_off_google_cloud_nobody_is_asked_again(monkeypatch):
    monkeypatch.setattr(interruption, "METADATA_SECONDS", 0.1)
    environ = {"GCE_METADATA_HOST": "127.0.0.1:9"}
    with interruption.listening(60, environ, str) as notice:
        time.sleep(1.5)
        assert notice.reason is None
        assert "metadata" not in {thread.name for thread in threading.enumerate()}
