"""Files written whole, and JSON read back or passed over."""

import pytest
import tensorflow as tf

from trainer import files


@pytest.mark.parametrize("data", [b"\x00\xff bytes", "text, \u00e9\n"])
def test_file_holds_what_was_written_and_nothing_is_left_beside_it(tmp_path, data):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before, and longer than what comes after")
    files.write(str(path), data)
    expected = data if isinstance(data, bytes) else data.encode()
    assert path.read_bytes() == expected
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(str(path), {"old": 1})

    def full(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "disk full")

    monkeypatch.setattr(tf.io.gfile, "rename", full)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        files.write_json(str(path), {"new": 2})
    assert files.read_json(str(path)) == {"old": 1}


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "\u00e9"}}
    files.write_json(str(tmp_path / "a.json"), value)
    assert files.read_json(str(tmp_path / "a.json")) == value


def test_below_a_file_there_is_no_json_object(tmp_path):
    (tmp_path / "file").write_text("")
    assert files.read_json(str(tmp_path / "file" / "a.json")) == {}
    assert files.read_json(str(tmp_path)) == {}


@pytest.mark.parametrize("data", [None, b"", b'{"a": ', b"[1]", b"\xff\xfe{}"])
def test_what_is_no_json_object_reads_as_nothing(tmp_path, data):
    path = tmp_path / "a.json"
    if data is not None:
        path.write_bytes(data)
    assert files.read_json(str(path)) == {}
