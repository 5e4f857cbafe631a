"""Asks the server by hand: plain HTTPS through the proxy, as any client would."""

import http.client
import json
import ssl
import urllib.parse

from tests.gcs.server import Server

HOST = "storage.googleapis.com"
# A connection that ends without an answer, or in the middle of one.
ENDED = (http.client.RemoteDisconnected, http.client.IncompleteRead)
# Status, headers with their names in lower case, body.
Reply = tuple[int, dict[str, str], bytes]


def call(
    gcs: Server,
    method: str,
    path: str,
    body: bytes = b"",
    host: str = HOST,
    **headers: str,
) -> Reply:
    """Sends a request over a connection of its own; returns what comes back."""
    trust = ssl.create_default_context(cafile=gcs.authority)
    connection = http.client.HTTPSConnection(gcs.proxy, timeout=60, context=trust)
    connection.set_tunnel(host)
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, told)
        reply = connection.getresponse()
        answered = {name.lower(): value for name, value in reply.getheaders()}
        return reply.status, answered, reply.read()
    finally:
        connection.close()


def address(bucket: str, name: str) -> str:
    """Returns the path of an object."""
    return f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"


def generation(gcs: Server, bucket: str, name: str) -> str:
    """Returns the generation of an object that is there."""
    return json.loads(call(gcs, "GET", address(bucket, name))[2])["generation"]


def upload(
    gcs: Server, bucket: str, name: str, body: bytes, how: str, **query: str
) -> Reply:
    """Uploads by one of the ways there are: media, multipart, resumable."""
    path = _into(bucket, uploadType=how, name=name, **query)
    if how == "media":
        return call(gcs, "POST", path, body)
    if how == "multipart":
        told = json.dumps({"name": name}).encode()
        lines = [b"--x", b"Content-Type: application/json", b"", told]
        lines += [b"--x", b"Content-Type: text/plain", b"", body, b"--x--"]
        kind = "multipart/related; boundary=x"
        return call(gcs, "POST", path, b"\r\n".join(lines), Content_Type=kind)
    begun = call(gcs, "POST", path)
    return call(gcs, "PUT", _place(begun), body) if begun[0] == 200 else begun


def begin(gcs: Server, bucket: str, name: str, **query: str) -> str:
    """Begins an upload in parts; returns the path they go to."""
    path = _into(bucket, uploadType="resumable", name=name, **query)
    return _place(call(gcs, "POST", path))


def part(first: int, last: int, total: int) -> dict[str, str]:
    """Returns the header that says which bytes a part of an upload is."""
    return {"Content_Range": f"bytes {first}-{last}/{total}"}


def _into(bucket: str, **query: str) -> str:
    return f"/upload/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}"


def _place(begun: Reply) -> str:
    status, headers, _ = begun
    assert status == 200
    assert headers["location"].startswith(f"https://{HOST}/")
    return headers["location"].removeprefix(f"https://{HOST}")
