"""Runs a Vertex AI of one's own, in .venv-deploy, until it is ended.

    .venv-deploy/bin/python -m tests.vertex --port=8080

prints its address in one line: the `api_endpoint` of a client that talks REST.
"""

import argparse
import contextlib
import signal
import sys

from tests.vertex import http_server


def main() -> int:
    """Returns 0, once it is ended."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vertex",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    server = http_server.make(parser.parse_args().port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
