"""Faults and distance between a job and its storage are as asked."""

import concurrent.futures
import http.client

import pytest

from tests.gcs import ask
from tests.gcs.faults import Faults

CONTENT = bytes(range(256)) * 4096  # 1 MiB


def test_cut_download_ends_before_its_length(gcs, gcs_bucket):
    gcs.put(f"gs://{gcs_bucket}/a", CONTENT)
    gcs.set_faults(cut_share=1.0)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask.call(gcs, "GET", f"/{gcs_bucket}/a")
    assert 0 < len(caught.value.partial) < len(CONTENT)
    assert CONTENT.startswith(caught.value.partial)
    assert gcs.requests(gcs_bucket)[-1]["bytes_sent"] == len(caught.value.partial)


def test_request_whose_answer_is_lost_is_done(gcs, gcs_bucket):
    gcs.set_faults(lost_share=1.0)
    with pytest.raises(ask.ENDED):
        ask.upload(gcs, gcs_bucket, "a", b"1", "media")
    assert gcs.objects(gcs_bucket) == {"a": b"1"}


def test_faults_have_the_shares_asked_for_and_none_has_two():
    faults = Faults(error_share=0.1, cut_share=0.2, lost_share=0.3, slow_share=0.4)
    fates = [faults.fate(number) for number in range(1, 4001)]
    kinds = [[f.error is not None, f.cut, f.lost] for f in fates]
    assert max(map(sum, kinds)) == 1
    shares = [sum(kind) / len(fates) for kind in zip(*kinds, strict=True)]
    assert shares == pytest.approx([0.1, 0.2, 0.3], abs=0.02)
    assert sum(f.slow for f in fates) / len(fates) == pytest.approx(0.4, abs=0.03)
    assert {f.error for f in fates} == {None, 429, 500, 503}
    with pytest.raises(ValueError, match="at most 1"):
        Faults(error_share=0.6, cut_share=0.6)


def test_the_same_requests_fail_each_time_the_faults_are_set(gcs, gcs_bucket):
    faults = Faults(error_share=0.5, seed=5)
    expected = [faults.fate(number).error or 404 for number in range(1, 21)]
    assert 404 in expected and len(set(expected)) > 2
    for _ in range(2):
        gcs.set_faults(error_share=0.5, seed=5)
        path = ask.address(gcs_bucket, "a")
        assert [ask.call(gcs, "GET", path)[0] for _ in range(20)] == expected
    gcs.set_faults()
    assert ask.call(gcs, "GET", path)[0] == 404


def test_requests_take_the_time_that_distance_and_bandwidth_ask_for(gcs, gcs_bucket):
    gcs.set_faults(latency_seconds=0.05)
    ask.call(gcs, "GET", ask.address(gcs_bucket, "a"))
    gcs.set_faults(bytes_per_second=10e6)
    ask.upload(gcs, gcs_bucket, "a", CONTENT, "media")
    ask.call(gcs, "GET", f"/{gcs_bucket}/a")
    gcs.set_faults(slow_share=1.0, slow_seconds=0.05)
    ask.call(gcs, "GET", ask.address(gcs_bucket, "a"))
    distant, sent, received, slow = gcs.requests(gcs_bucket)
    assert distant["seconds"] >= 0.05
    assert sent["seconds"] >= 0.1
    assert received["seconds"] >= 0.1
    assert slow["seconds"] >= 0.05 and slow["fault"] == "slow"


def test_requests_of_several_connections_wait_at_the_same_time(gcs, gcs_bucket):
    gcs.set_faults(latency_seconds=0.5)
    path = ask.address(gcs_bucket, "a")
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            threads.submit(ask.call, gcs, "GET", path)
    one, other = gcs.requests(gcs_bucket)
    assert other["time"] < one["time"] + one["seconds"]


def test_nothing_gets_through_from_a_request_on(gcs, gcs_bucket):
    gcs.set_faults(drop_from=3)
    for name in "ab":
        ask.upload(gcs, gcs_bucket, name, b"1", "media")
    for method in ("GET", "DELETE"):
        with pytest.raises(ask.ENDED):
            ask.call(gcs, method, ask.address(gcs_bucket, "a"))
    gcs.set_faults()
    assert ask.call(gcs, "DELETE", ask.address(gcs_bucket, "a"))[0] == 204
    faults = [one["fault"] for one in gcs.requests(gcs_bucket)]
    assert faults == [None, None, "dropped", "dropped", None]


def test_nothing_gets_through_from_a_write_on(gcs, gcs_bucket):
    gcs.set_faults(drop_from=2, drop_counts_writes_only=True)
    assert ask.upload(gcs, gcs_bucket, "a", b"1", "media")[0] == 200
    for _ in range(3):
        assert ask.call(gcs, "GET", ask.address(gcs_bucket, "a"))[0] == 200
    for method in ("DELETE", "GET"):
        with pytest.raises(ask.ENDED):
            ask.call(gcs, method, ask.address(gcs_bucket, "a"))
    assert gcs.objects(gcs_bucket) == {"a": b"1"}
