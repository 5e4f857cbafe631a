"""The stand-in for Google Cloud Storage answers as the real service does."""

import json
import socket
import ssl
import urllib.parse

import pytest

from tests.gcs import ask, uploads

WAYS = pytest.mark.parametrize("how", ["media", "multipart", "resumable"])
CONTENT = bytes(range(256)) * 4096  # 1 MiB


@WAYS
def test_what_is_uploaded_is_there_and_what_is_deleted_is_not(gcs, gcs_bucket, how):
    assert ask.upload(gcs, gcs_bucket, "a/b", CONTENT, how)[0] == 200
    assert gcs.objects(gcs_bucket) == {"a/b": CONTENT}
    path = f"/{gcs_bucket}/a%2Fb"  # By which TensorFlow reads.
    assert ask.call(gcs, "GET", path)[2] == CONTENT
    assert ask.call(gcs, "GET", path, Range="bytes=1-2")[2] == CONTENT[1:3]
    path = ask.address(gcs_bucket, "a/b")
    assert ask.call(gcs, "GET", f"{path}?alt=media")[2] == CONTENT
    assert ask.call(gcs, "DELETE", path)[0] == 204
    assert ask.call(gcs, "DELETE", path)[0] == 404
    assert gcs.objects(gcs_bucket) == {}


def test_question_how_far_an_upload_is_tells_what_arrived_and_changes_nothing(
    gcs, gcs_bucket
):
    to, half = ask.begin(gcs, gcs_bucket, "a"), len(CONTENT) // 2
    total = len(CONTENT)
    status, headers, _ = ask.call(gcs, "PUT", to, Content_Range=f"bytes */{total}")
    assert (status, headers.get("range")) == (308, None)
    status, _, _ = ask.call(
        gcs, "PUT", to, CONTENT[:half], **ask.part(0, half - 1, total)
    )
    assert status == 308
    for _ in range(2):
        status, headers, _ = ask.call(gcs, "PUT", to, Content_Range=f"bytes */{total}")
        assert (status, headers["range"]) == (308, f"bytes=0-{half - 1}")
    assert gcs.objects(gcs_bucket) == {}
    status, _, _ = ask.call(
        gcs, "PUT", to, CONTENT[half:], **ask.part(half, total - 1, total)
    )
    assert status == 200
    for _ in range(2):
        status, _, body = ask.call(gcs, "PUT", to, Content_Range=f"bytes */{total}")
        assert (status, json.loads(body)["size"]) == (200, str(total))
    assert gcs.objects(gcs_bucket) == {"a": CONTENT}


def test_of_a_part_that_is_cut_whole_chunks_are_kept_and_the_upload_goes_on(
    gcs, gcs_bucket
):
    to, total = ask.begin(gcs, gcs_bucket, "a"), len(CONTENT)
    gcs.set_faults(cut_share=1.0, seed=3)
    with pytest.raises(ask.ENDED):
        ask.call(gcs, "PUT", to, CONTENT, **ask.part(0, total - 1, total))
    arrived = gcs.requests(gcs_bucket)[-1]["bytes_received"]
    kept = arrived // uploads.CHUNK * uploads.CHUNK
    assert 0 < kept < arrived < total
    assert gcs.objects(gcs_bucket) == {}
    gcs.set_faults()
    status, headers, _ = ask.call(gcs, "PUT", to, Content_Range=f"bytes */{total}")
    assert (status, headers["range"]) == (308, f"bytes=0-{kept - 1}")
    status, _, _ = ask.call(
        gcs, "PUT", to, CONTENT[kept:], **ask.part(kept, total - 1, total)
    )
    assert status == 200
    assert gcs.objects(gcs_bucket) == {"a": CONTENT}


@WAYS
def test_cut_upload_leaves_what_was_there(gcs, gcs_bucket, how):
    gcs.put(f"gs://{gcs_bucket}/a", b"before")
    to = ask.begin(gcs, gcs_bucket, "a")
    gcs.set_faults(cut_share=1.0)
    with pytest.raises(ask.ENDED):
        if how == "resumable":
            ask.call(gcs, "PUT", to, CONTENT)
        else:
            ask.upload(gcs, gcs_bucket, "a", CONTENT, how)
    assert gcs.objects(gcs_bucket) == {"a": b"before"}


def test_upload_whose_client_dies_leaves_nothing(gcs, gcs_bucket):
    host, port = gcs.proxy.split(":")
    trust = ssl.create_default_context(cafile=gcs.authority)
    with socket.create_connection((host, int(port)), 60) as plain:
        plain.sendall(f"CONNECT {ask.HOST}:443 HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in plain.recv(1000)
        with trust.wrap_socket(plain, server_hostname=ask.HOST) as secure:
            path = f"/upload/storage/v1/b/{gcs_bucket}/o?uploadType=media&name=a"
            head = [
                f"POST {path} HTTP/1.1",
                f"Host: {ask.HOST}",
                "Content-Length: 1000",
            ]
            secure.sendall("\r\n".join([*head, "", ""]).encode() + CONTENT[:500])
    assert ask.call(gcs, "GET", ask.address(gcs_bucket, "a"))[0] == 404
    assert gcs.objects(gcs_bucket) == {}


@WAYS
def test_object_is_written_only_over_the_generation_that_is_meant(gcs, gcs_bucket, how):
    def write(body: bytes, over: str) -> int:
        return ask.upload(gcs, gcs_bucket, "a", body, how, ifGenerationMatch=over)[0]

    assert write(b"1", "7") == 412
    assert write(b"1", "0") == 200
    first = ask.generation(gcs, gcs_bucket, "a")
    assert write(b"2", "0") == 412
    assert write(b"2", first) == 200
    assert write(b"3", first) == 412
    assert gcs.objects(gcs_bucket) == {"a": b"2"}


def test_precondition_of_an_upload_in_parts_holds_at_its_end_too(gcs, gcs_bucket):
    to = ask.begin(gcs, gcs_bucket, "a", ifGenerationMatch="0")
    gcs.put(f"gs://{gcs_bucket}/a", b"another's")
    assert ask.call(gcs, "PUT", to, b"ours")[0] == 412
    assert gcs.objects(gcs_bucket) == {"a": b"another's"}


def test_object_is_read_and_deleted_only_in_the_generation_that_is_meant(
    gcs, gcs_bucket
):
    gcs.put(f"gs://{gcs_bucket}/a", b"1")
    there, path = ask.generation(gcs, gcs_bucket, "a"), ask.address(gcs_bucket, "a")
    for method, done in (("GET", 200), ("DELETE", 204)):
        assert ask.call(gcs, method, f"{path}?ifGenerationMatch=7")[0] == 412
        assert ask.call(gcs, method, f"{path}?ifGenerationMatch={there}")[0] == done
    assert ask.call(gcs, "DELETE", f"{path}?ifGenerationMatch={there}")[0] in (404, 412)


def test_permissions_that_are_denied_are_not_among_those_granted(gcs, gcs_bucket):
    names = [f"storage.objects.{act}" for act in ("get", "list", "create", "delete")]
    query = urllib.parse.urlencode([("permissions", name) for name in names])

    def granted(bucket: str) -> tuple[int, list[str]]:
        path = f"/storage/v1/b/{bucket}/iam/testPermissions?{query}"
        status, _, body = ask.call(gcs, "GET", path)
        return status, json.loads(body).get("permissions", [])

    assert granted(gcs_bucket) == (200, names)
    assert granted("there-is-none") == (404, [])
    gcs.set_faults(denied={names[0]: "", names[1]: "secret/", names[2]: "!ours/"})
    assert granted(gcs_bucket) == (200, [names[1], names[3]])
    gcs.set_faults(denied=dict.fromkeys(names, ""))
    assert granted(gcs_bucket) == (200, [])


@pytest.mark.parametrize(
    "denied, refused",
    [
        ("get", {"stat", "read", "copy"}),
        ("list", {"list"}),
        ("create", {"new", "replace", "copy", "begin"}),
        ("delete", {"replace", "delete"}),
    ],
)
def test_request_is_refused_where_a_permission_it_needs_is_denied(
    gcs, gcs_bucket, denied, refused
):
    def asked(prefix: str) -> dict[str, int]:
        gcs.put(f"gs://{gcs_bucket}/{prefix}old", b"1")
        old, new = ask.address(gcs_bucket, f"{prefix}old"), f"{prefix}new"
        copy = f"{old}/rewriteTo{ask.address(gcs_bucket, f'{prefix}copy')[11:]}"
        into = f"/upload/storage/v1/b/{gcs_bucket}/o?uploadType=resumable&name={new}"
        among = f"/storage/v1/b/{gcs_bucket}/o?prefix={prefix}"
        return {
            "stat": ask.call(gcs, "GET", old)[0],
            "read": ask.call(gcs, "GET", f"{old}?alt=media")[0],
            "list": ask.call(gcs, "GET", among)[0],
            "begin": ask.call(gcs, "POST", into)[0],
            "new": ask.upload(gcs, gcs_bucket, new, b"2", "media")[0],
            "replace": ask.upload(gcs, gcs_bucket, f"{prefix}old", b"2", "media")[0],
            "copy": ask.call(gcs, "POST", copy)[0],
            "delete": ask.call(gcs, "DELETE", old)[0],
        }

    gcs.set_faults(denied={f"storage.objects.{denied}": "secret/"})
    statuses = asked("secret/")
    assert {name for name, status in statuses.items() if status == 403} == refused
    assert {statuses[name] for name in set(statuses) - refused} <= {200, 204}
    assert set(asked("other/").values()) <= {200, 204}


def test_refusal_names_the_permission_as_the_service_does(gcs, gcs_bucket):
    gcs.set_faults(denied={"storage.objects.get": ""})
    status, headers, body = ask.call(gcs, "GET", ask.address(gcs_bucket, "a"))
    error = json.loads(body)["error"]
    told = (status, error["code"], error["errors"][0]["reason"])
    assert told == (403, 403, "forbidden")
    assert "storage.objects.get" in error["message"]
    assert headers["content-type"].startswith("application/json")
