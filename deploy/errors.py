"""What Google's libraries raise, each in one line with the way out."""

import contextlib
import urllib.parse
from collections.abc import Iterator

from deploy.command import Failure, Interrupted

# How long a look at a job goes on while the service does not answer.
PATIENCE_SECONDS = 900.0


class NoQuota(Failure):
    """The project may not have so much of it in this region."""


class NotThere(Failure):
    """There is no such job."""


@contextlib.contextmanager
def in_one_line(
    doing: str,
    look: str | None = None,
    takes: str = "roles/aiplatform.user in the project",
) -> Iterator[None]:
    """Turns what Google's libraries raise into `Failure`.

    Args:
        doing: What was being done.
        look: The command that tells whether it was done, where that is not known: of
            an order.
        takes: The role that it takes.
    """
    from google.api_core import exceptions
    from google.auth import exceptions as auth
    from requests import exceptions as lost

    others = ", or give --regions=A,B to try others" if look else ""
    unknown = f"; whether it was done is not known, look first: {look}" if look else ""
    try:
        yield
    except auth.DefaultCredentialsError:
        raise Failure(
            "no credentials found; get them: gcloud auth application-default login"
        ) from None
    except auth.TransportError as error:
        raise Failure(
            f"{doing} failed, Google's accounts cannot be reached: {words(error)}"
        ) from None
    except auth.GoogleAuthError as error:
        raise Failure(
            f"the credentials are not accepted ({words(error)}); renew them: gcloud "
            "auth application-default login"
        ) from None
    except exceptions.RetryError as error:
        raise Failure(
            f"{doing} failed, the service did not answer for "
            f"{PATIENCE_SECONDS:g} s: {words(error.cause or error)}"
        ) from None
    except exceptions.TooManyRequests as error:
        raise NoQuota(
            f"{doing} failed, a quota is used up: {words(error)}; ask for more, or wait"
            f"{others}"
        ) from None
    except exceptions.Forbidden as error:
        raise Failure(
            f"{doing} failed, it is not allowed: {words(error)}; it takes {takes}"
        ) from None
    except exceptions.NotFound as error:
        raise NotThere(f"{doing} failed, it is not there: {words(error)}") from None
    except exceptions.ServerError as error:
        raise Failure(
            f"{doing} failed, the service had an error of its own, {error.code}: "
            f"{words(error)}{unknown}"
        ) from None
    except exceptions.GoogleAPICallError as error:
        raise Failure(f"{doing} failed, it is refused: {words(error)}") from None
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted while {doing}{unknown}") from None
    except (lost.InvalidURL, lost.InvalidSchema) as error:
        raise Failure(f"{doing} failed, no such address: {words(error)}") from None
    except (lost.RequestException, ConnectionError) as error:
        if "NewConnectionError" in str(error) or "NameResolution" in str(error):
            where = getattr(getattr(error, "request", None), "url", "")
            raise Failure(
                f"{doing} failed, {urllib.parse.urlsplit(where).netloc} cannot be "
                "reached; look at the network, the region and api_endpoint"
            ) from None
        raise Failure(
            f"{doing} failed, the connection was lost: {words(error)}{unknown}"
        ) from None


def words(error: BaseException) -> str:
    """Returns what an error says, in one line."""
    text = str(getattr(error, "message", None) or error)
    response = getattr(error, "response", None)
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        # Without the address.
        text = response.json()["error"]["message"]  # type: ignore[union-attr]
    return " ".join(text.split()) or type(error).__name__
