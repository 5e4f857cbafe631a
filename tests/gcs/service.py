"""Answers requests as Google Cloud Storage does, with the help of fake-gcs-server.

That one keeps the objects. It knows nothing of permissions; takes an upload in parts for
done when it is asked how much has arrived; and overlooks the precondition
ifGenerationMatch, but on uploads of one kind.
"""

import http.client
import json
import threading
import urllib.parse
import uuid

from tests.gcs import uploads, wire
from tests.gcs.faults import Faults
from tests.gcs.wire import Act, Answer, Request

# Of one connection, not of what it carries.
HOP_BY_HOP = {
    *("connection", "content-length", "expect", "host", "keep-alive"),
    *("proxy-authorization", "proxy-connection", "transfer-encoding"),
}
TIMEOUT_SECONDS = 60.0
NO_BUCKET = wire.failure(404, "The specified bucket does not exist.")


class Service:
    """The service; used from several threads."""

    def __init__(self, upstream: str) -> None:
        """Takes host:port of fake-gcs-server."""
        self._upstream = upstream
        self._sessions: dict[str, uploads.Session] = {}
        self._writing = (
            threading.Lock()
        )  # From looking at what is there to changing it.

    def answer(self, request: Request, faults: Faults) -> Answer:
        """Returns the answer to a request, of which all has arrived."""
        act = wire.act_of(request)
        if act.kind == "iam":
            return self._permissions(request, act, faults)
        if act.kind in wire.WRITES or act.kind == "status":
            with self._writing:
                return self._write(request, act, faults)
        return self._refusal(request, act, faults) or self._ask(request)

    def cut(self, request: Request, arrived: int) -> None:
        """Takes a request of whose body only so many bytes arrived."""
        with self._writing:
            session = self._sessions.get(request.asked("upload_id") or "")
            if session is not None:
                uploads.keep_cut(session, request, arrived)

    def _write(self, request: Request, act: Act, faults: Faults) -> Answer:
        upload_id = request.asked("upload_id")
        session = self._sessions.get(upload_id) if upload_id else None
        if upload_id and session is None:
            return wire.failure(404, "There is no such upload.")
        if session is not None and session.answer is not None:
            return session.answer
        if upload_id and request.method == "DELETE":
            del self._sessions[upload_id]
            return Answer(499, [], b"")
        match = session.generation_match if session else None
        if refusal := self._refusal(request, act, faults, match):
            return refusal
        if session is not None:
            return self._resume(request, session)
        if act.kind == "session":
            return self._open(request, act)
        answer = self._ask(request)
        if act.kind == "delete" and answer.status == 200:
            return Answer(204, [], b"")
        return answer

    def _refusal(
        self, request: Request, act: Act, faults: Faults, match: str | None = None
    ) -> Answer | None:
        """Returns the answer to what may not be done, None if it may.

        Args:
            request: The request.
            act: What it asks for.
            faults: Tell which permissions are denied.
            match: The generation that its upload was begun for, None without that.
        """
        match = match or request.asked("ifGenerationMatch")
        is_write = act.kind in wire.WRITES
        generation = "0"
        if match is not None or (faults.denied and is_write):
            generation = self._generation(act)
        for permission, name in needed(act, generation != "0"):
            if faults.denies(permission, name):
                return wire.failure(
                    403,
                    f"The caller does not have {permission} access to the Google Cloud "
                    f"Storage object. Permission '{permission}' denied on resource (or "
                    "it may not exist).",
                )
        is_missing = not is_write and generation == "0"
        if match is not None and match != generation and not is_missing:
            return wire.failure(
                412, "At least one of the pre-conditions you specified did not hold."
            )
        return None

    def _generation(self, act: Act) -> str:
        """Returns the generation of an object, "0" where there is none."""
        name = urllib.parse.quote(act.name, safe="")
        answer = self._send("GET", f"/storage/v1/b/{act.bucket}/o/{name}", {}, b"")
        return json.loads(answer.body)["generation"] if answer.status == 200 else "0"

    def _permissions(self, request: Request, act: Act, faults: Faults) -> Answer:
        """Returns which of the permissions asked for are granted for the bucket."""
        if self._send("GET", f"/storage/v1/b/{act.bucket}", {}, b"").status == 404:
            return NO_BUCKET
        asked = urllib.parse.parse_qs(request.query).get("permissions", [])
        granted = [one for one in asked if not faults.denies(one)]
        value: dict = {"kind": "storage#testIamPermissionsResponse"}
        return wire.answered(200, value | ({"permissions": granted} if granted else {}))

    def _open(self, request: Request, act: Act) -> Answer:
        """Begins an upload that comes in parts."""
        if self._send("GET", f"/storage/v1/b/{act.bucket}", {}, b"").status == 404:
            return NO_BUCKET
        upload_id = uuid.uuid4().hex
        self._sessions[upload_id] = uploads.opened(request, act.bucket, act.name)
        query = urllib.parse.urlencode(
            dict(uploadType="resumable", name=act.name, upload_id=upload_id)
        )
        place = f"https://{request.host}{wire.UPLOAD}{act.bucket}/o?{query}"
        return Answer(200, [("location", place)], b"")

    def _resume(self, request: Request, session: uploads.Session) -> Answer:
        """Takes a part of an upload; stores the object when all has arrived."""
        answer = uploads.take(session, request)
        if answer is not None:
            return answer
        headers, body = uploads.whole(session)
        path = f"{wire.UPLOAD}{session.bucket}/o?uploadType=multipart"
        answer = self._send("POST", path, headers | {"host": request.host}, body)
        if answer.status == 200:
            session.answer, session.parts = answer, []
        return answer

    def _ask(self, request: Request) -> Answer:
        """Returns what fake-gcs-server answers to a request."""
        # What it would check besides us has been checked.
        query = urllib.parse.parse_qsl(request.query, keep_blank_values=True)
        kept = [(name, value) for name, value in query if name != "ifGenerationMatch"]
        path = request.path + (f"?{urllib.parse.urlencode(kept)}" if kept else "")
        headers = request.headers | {"host": request.host}
        return self._send(request.method, path, headers, request.body)

    def _send(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        """Returns what fake-gcs-server answers; `host` tells it what a path means."""
        sent = {name: headers[name] for name in headers if name not in HOP_BY_HOP}
        sent["host"] = headers.get("host", "storage.googleapis.com")
        connection = http.client.HTTPConnection(self._upstream, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, path, body or None, sent)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        told = [(name.lower(), value) for name, value in reply.getheaders()]
        kept = [(name, value) for name, value in told if name not in HOP_BY_HOP]
        return Answer(reply.status, kept, content)


def needed(act: Act, exists: bool) -> list[tuple[str, str]]:
    """Returns the permissions a request needs, each with the object it needs it for.

    Args:
        act: What the request asks for.
        exists: Whether the object is there; replacing it needs the right to delete.
    """
    acts = {"read": "get", "stat": "get", "list": "list"}
    acts |= {"delete": "delete", "update": "update"}
    if act.kind in acts:
        return [(f"storage.objects.{acts[act.kind]}", act.name)]
    if act.kind not in wire.WRITES:
        return []
    found = [("storage.objects.get", source) for source in act.sources]
    found.append(("storage.objects.create", act.name))
    return found + ([("storage.objects.delete", act.name)] if exists else [])
