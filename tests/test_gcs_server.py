"""The stand-in for Google Cloud Storage starts, ends, and is what jobs talk to."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.gcs import ask, programs, server


def test_log_tells_of_each_request_what_it_was_and_its_bytes(gcs, gcs_bucket):
    to = ask.begin(gcs, gcs_bucket, "a")
    ask.call(gcs, "PUT", to, b"123")
    ask.call(gcs, "GET", f"/{gcs_bucket}/a", Range="bytes=0-1")
    ask.call(gcs, "GET", f"/storage/v1/b/{gcs_bucket}/o?prefix=a")
    ask.call(gcs, "DELETE", ask.address(gcs_bucket, "b"))
    keys = ("method", "kind", "object", "status", "bytes_received")
    told = [tuple(one[key] for key in keys) for one in gcs.requests(gcs_bucket)]
    assert told == [
        ("POST", "session", "a", 200, 0),
        ("PUT", "upload", "a", 200, 3),
        ("GET", "read", "a", 206, 0),
        ("GET", "list", "a", 200, 0),
        ("DELETE", "delete", "b", 404, 0),
    ]
    assert gcs.requests(gcs_bucket)[2]["bytes_sent"] == 2


def test_other_hosts_are_out_of_reach(gcs):
    status, _, body = ask.call(gcs, "GET", "/", host="service.invalid")
    assert (status, b"no way to service.invalid" in body) == (502, True)


def test_folder_is_uploaded_with_the_folders_in_it(gcs, gcs_bucket, tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b" / "c" / "d e").write_bytes(b"2")
    gcs.upload(tmp_path, f"gs://{gcs_bucket}/top/")
    assert gcs.objects(gcs_bucket) == {"top/a": b"1", "top/b/c/d e": b"2"}
    assert gcs.objects(gcs_bucket, "top/b") == {"top/b/c/d e": b"2"}
    gcs.delete(f"gs://{gcs_bucket}/top/a")
    assert gcs.names(gcs_bucket) == ["top/b/c/d e"]


@pytest.mark.usefixtures("gcs_of_session")
def test_server_ends_and_leaves_nothing_when_the_work_with_it_fails():
    with pytest.raises(ZeroDivisionError), server.serve() as short:
        assert short.settings.exists()
        raise ZeroDivisionError
    assert not short.settings.parent.exists()
    for address_of in (short.proxy, short.storage.removeprefix("http://")):
        host, port = address_of.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 10)


@pytest.mark.usefixtures("gcs_of_session")
def test_command_runs_where_the_bucket_is_and_ends_with_its_code(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    code = (
        "import os, sys; sys.exit(7 * (os.environ['HTTPS_PROXY'] != sys.argv[1]"
        " and os.path.exists(os.environ['CURL_CA_BUNDLE'])))"
    )
    serving = [sys.executable, "-m", "tests.gcs", f"--upload={tmp_path}=gs://data/x"]
    command = [*serving, "--", sys.executable, "-c", code, os.environ["HTTPS_PROXY"]]
    done = subprocess.run(command, cwd=programs.REPOSITORY, timeout=120, check=False)
    assert done.returncode == 7


TENSORFLOW = """
import sys
import tensorflow as tf

gfile, top = tf.io.gfile, sys.argv[1]
with gfile.GFile(f"{top}/a/b", "wb") as file:
    file.write(bytes(3_000_000))
with gfile.GFile(f"{top}/a/b", "ab") as file:
    file.write(b"more")
with gfile.GFile(f"{top}/a/b", "rb") as file:
    assert file.read() == bytes(3_000_000) + b"more"
assert gfile.stat(f"{top}/a/b").length == 3_000_004
assert gfile.exists(f"{top}/a/b") and not gfile.exists(f"{top}/a/c")
assert gfile.isdir(f"{top}/a")
assert gfile.listdir(top) == ["a/"]
assert gfile.glob(f"{top}/*/b*") == [f"{top}/a/b"]
gfile.rename(f"{top}/a/b", f"{top}/a/c")
assert gfile.listdir(f"{top}/a") == ["c"]
gfile.rmtree(f"{top}/a")
assert not gfile.exists(f"{top}/a/c")
with gfile.GFile(f"{top}/end", "w") as file:
    file.write("")
"""


def test_tensorflow_writes_reads_lists_renames_and_deletes(
    gcs: server.Server, gcs_bucket: str, tmp_path: pathlib.Path
):
    program = tmp_path / "program.py"
    program.write_text(TENSORFLOW, encoding="utf-8")
    command = [sys.executable, str(program), f"gs://{gcs_bucket}/top"]
    environment = {**os.environ, **gcs.environment}
    subprocess.run(command, env=environment, timeout=300, check=True)
    assert gcs.objects(gcs_bucket, "top/end") == {"top/end": b""}
    assert {one["fault"] for one in gcs.requests(gcs_bucket)} == {None}
