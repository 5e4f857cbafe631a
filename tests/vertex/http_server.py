"""The HTTP side: connections, bodies, and connections that end without an answer."""

import json
import socket
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.vertex import service, wire

SECRETS = {"authorization", "cookie", "x-goog-api-key", "proxy-authorization"}


def make(port: int) -> ThreadingHTTPServer:
    """Returns a server of a service with no jobs, on 127.0.0.1; port 0 is a free one."""
    running = service.Vertex()

    class Handler(_Handler):
        vertex = running

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Clients keep their connections.
    # Else each answer of two small packets waits 40 ms for the client's acknowledgement.
    disable_nagle_algorithm = True
    vertex: service.Vertex

    def do_GET(self) -> None:
        """Answers a request of any method."""
        path, _, query = self.path.partition("?")
        request = wire.Request(
            method=self.command,
            path=urllib.parse.unquote(path),
            query=dict(urllib.parse.parse_qsl(query, keep_blank_values=True)),
            headers={
                name.lower(): value
                for name, value in self.headers.items()
                if name.lower() not in SECRETS
            },
            body=self.rfile.read(int(self.headers.get("Content-Length", 0))),
        )
        reply = self.vertex.answer(request)
        if reply is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, value = reply
        data = json.dumps(value, indent=2).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_DELETE = do_PATCH = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: what was asked is told at /control/requests."""
