"""What Google's libraries raise is told in one line, with the way out."""

import pytest
import requests
from google.api_core import exceptions
from google.auth import exceptions as auth

from deploy import command, errors

ERRORS = [
    (
        auth.RefreshError("expired"),
        r"not accepted \(expired\); renew them: gcloud auth",
    ),
    (auth.TransportError("no route"), "Google's accounts cannot be reached: no route"),
    (exceptions.RetryError("late", None), "did not answer for 900 s: late"),
    (exceptions.Conflict("is there"), "asking failed, it is refused: is there"),
    (requests.ReadTimeout("slow"), "the connection was lost: slow; whether .*: LOOK"),
    (requests.exceptions.InvalidURL("a b"), "no such address: a b"),
    (
        exceptions.BadGateway("two\nlines"),
        "of its own, 502: two lines; whether .*: LOOK",
    ),
]


@pytest.mark.parametrize("error, line", ERRORS, ids=lambda x: type(x).__name__)
def test_an_error_of_a_library_becomes_one_line(error, line):
    with (
        pytest.raises(command.Failure, match=line) as told,
        errors.in_one_line("asking", look="LOOK"),
    ):
        raise error
    assert "\n" not in str(told.value)


def test_the_way_out_is_that_of_what_was_being_done():
    with (
        pytest.raises(command.Failure, match="it takes the bucket's role$"),
        errors.in_one_line("uploading", takes="the bucket's role"),
    ):
        raise exceptions.Forbidden("no")
    for look, way_out in ((None, "wait$"), ("LOOK", "wait, or give --regions=A,B")):
        with (
            pytest.raises(errors.NoQuota, match=way_out),
            errors.in_one_line("asking", look),
        ):
            raise exceptions.TooManyRequests("enough")


def test_ctrl_c_says_what_was_under_way_and_where_to_look():
    with (
        pytest.raises(command.Interrupted, match="while asking; whether .*: LOOK"),
        errors.in_one_line("asking", look="LOOK"),
    ):
        raise KeyboardInterrupt


def test_a_defect_of_ours_is_left_alone():
    with pytest.raises(TypeError), errors.in_one_line("asking"):
        raise TypeError
