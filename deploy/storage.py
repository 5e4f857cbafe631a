"""What an order needs of its bucket: its package there, and no trials of another search."""

import os
from typing import Any

from deploy import command, errors, spec
from deploy.order import Order

TAKES = "roles/storage.objectUser on the bucket"


def check_package(order: Order) -> None:
    """Raises ValueError where there is no such package."""
    package = order.package
    if package and not package.startswith("gs://") and not os.path.isfile(package):
        raise ValueError(
            f"package must be a file or on gs://, got {package}; make one: python -m "
            "build --sdist"
        )


def upload_package(order: Order) -> None:
    """Puts a package of this machine where the service finds it.

    Raises:
        Failure: If it cannot be put there.
    """
    uri = spec.package_uri(order)
    if order.package is None or uri == order.package:
        return
    with errors.in_one_line(f"uploading {order.package} to {uri}", takes=TAKES):
        client, bucket, name = _open(order, uri)
        client.bucket(bucket).blob(name).upload_from_filename(order.package)
    command.note(f"{order.package} -> {uri}")


def check_new(order: Order) -> None:
    """Raises ValueError where the job's folder holds something already.

    A search draws other settings each time: its trials would find the checkpoints of
    those before, and refuse them.
    """
    if begun(order):
        raise ValueError(
            f"a search must begin in a new folder, got {spec.folder(order)} with files in "
            "it; give another --job_name"
        )


def begun(order: Order) -> bool:
    """Returns whether the job's folder holds something; False where nobody can see."""
    folder = spec.folder(order)
    try:
        with errors.in_one_line("looking", takes=TAKES):
            client, bucket, name = _open(order, folder)
            return bool(
                list(client.list_blobs(bucket, prefix=f"{name}/", max_results=1))
            )
    except command.Failure as error:
        command.note(f"could not see whether {folder} is empty, as it must be: {error}")
        return False


def _open(order: Order, uri: str) -> tuple[Any, str, str]:
    """Returns a client of the storage, the bucket and the name of gs://BUCKET/NAME."""
    from google.cloud import storage

    bucket, _, name = uri.removeprefix("gs://").partition("/")
    return storage.Client(project=order.project), bucket, name
