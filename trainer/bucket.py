"""Google Cloud Storage: what we may do in a bucket, asked before the first step."""

import contextlib
import os
import re
import uuid

import google.auth.credentials
import google.auth.exceptions
import google.oauth2.credentials
from google.api_core import exceptions
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

READ = ("storage.objects.get", "storage.objects.list")
WRITE = (*READ, "storage.objects.create", "storage.objects.delete")
SECONDS = 10.0  # Before the first step: for an answer, and for trying again.


def check(setting: str, directory: str, permissions: tuple[str, ...]) -> None:
    """Asks a bucket what we may do there.

    TensorFlow would try ten times over minutes before it says what is wrong. Rights may
    be granted for a part of the bucket only, and TensorFlow finds its credentials in
    its own way: so the directory itself is tried through it. Nothing stays there.

    Args:
        setting: Name of the setting, for the message.
        directory: A gs:// path.
        permissions: `READ` or `WRITE`.

    Raises:
        ValueError: One line: no such bucket, no permission, no credentials, no network.
    """
    rule = f"{setting} must be in a bucket that we may use, got {directory}"
    bucket, without = directory.removeprefix("gs://").split("/")[0], ""
    if not bucket:
        raise ValueError(f"{rule}: it names none; give gs://BUCKET/PATH")
    try:
        asked = client()
    except google.auth.exceptions.DefaultCredentialsError as error:
        without = (
            "there are no credentials; run gcloud auth application-default login, or set "
            f"GOOGLE_APPLICATION_CREDENTIALS ({str(error.args[0]).split('. ')[0]})"
        )
        if permissions != READ:
            raise ValueError(f"{rule}: {without}") from None
        asked = storage.Client.create_anonymous_client()  # It may be open to everyone.
    try:
        asked.bucket(bucket).test_iam_permissions(
            permissions, timeout=SECONDS, retry=DEFAULT_RETRY.with_timeout(SECONDS)
        )
    except exceptions.NotFound:
        raise ValueError(f"{rule}: there is no bucket {bucket}") from None
    except (google.auth.exceptions.RefreshError, exceptions.Unauthorized) as error:
        raise ValueError(f"{rule}: the credentials are refused: {error}") from None
    except (
        *(google.auth.exceptions.TransportError, exceptions.RetryError),
        *(exceptions.ServerError, OSError),
    ):
        raise ValueError(
            f"{rule}: no answer from Google Cloud Storage in {SECONDS:.0f} seconds; is "
            "there a network?"
        ) from None
    except (ValueError, exceptions.BadRequest) as error:
        raise ValueError(f"{rule}: {str(error).splitlines()[0]}") from None
    except exceptions.Forbidden:
        pass  # Who may not ask may still have the rights.
    if missing := _missing(directory, permissions):
        raise ValueError(f"{rule}: {without or f'{missing} is not granted there'}")


def client() -> storage.Client:
    """Returns a client of Google Cloud Storage with the credentials TensorFlow takes.

    Raises:
        google.auth.exceptions.DefaultCredentialsError: If there are none.
    """
    token = os.environ.get("GOOGLE_AUTH_TOKEN_FOR_TESTING")  # TensorFlow's name for it.
    scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
    credentials: google.auth.credentials.Credentials
    if token:
        credentials = google.oauth2.credentials.Credentials(token)
    else:
        credentials, _ = google.auth.default(scopes)
    # A bucket is found without its project.
    return storage.Client(project="none", credentials=credentials)


def _missing(directory: str, permissions: tuple[str, ...]) -> str | None:
    """Returns the first of the permissions that we lack in a directory."""
    import tensorflow as tf

    path = os.path.join(directory, f".may-we-{uuid.uuid4().hex}")

    def write() -> None:
        with tf.io.gfile.GFile(path, "w") as file:
            file.write("?")

    def read() -> None:
        with tf.io.gfile.GFile(path) as file:
            file.read()

    def remove() -> None:
        with contextlib.suppress(tf.errors.NotFoundError):
            tf.io.gfile.remove(path)

    def look() -> None:
        tf.io.gfile.exists(path)

    # To delete what is not there takes the right to: so nothing is written that could
    # not be deleted. To look for what is not there takes the right to list.
    acts = (
        {"delete": remove, "create": write, "get": read} if permissions == WRITE else {}
    )
    for right, act in {**acts, "list": look}.items():
        try:
            act()
        except (
            tf.errors.PermissionDeniedError,
            tf.errors.UnauthenticatedError,
        ) as error:
            named = re.search(r"storage\.objects\.\w+", error.message)
            return named[0] if named else f"storage.objects.{right}"
        finally:
            if act is read:
                remove()
    return None
