"""Builds the container image without a Docker engine, and runs it without a network.

Debian's buildah needs neither a daemon nor a network of containers. The public base image
is on a registry that a test does not ask: a small Debian of this machine's packages
stands in for it.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BASE_IMAGE = "localhost/python:3.11-slim"
SUITE = "bookworm"  # The Debian of python:3.11-slim, whose python3 is 3.11 too.
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
PROGRAMS = ("buildah", "mmdebstrap", "unshare")
# Read while the image is built, and not part of it: what leads pip to its registry.
PIP_FILES = ("/etc/pip.conf", "/etc/ssl/certs")


@dataclasses.dataclass(frozen=True)
class Image:
    """An image that was built, and a container of it.

    Attributes:
        container: Name of the container.
        environ: The environment in which buildah finds it.
        num_bytes: Size of its files.
        base_bytes: Of these, the base image's.
        base_seconds: How long the base image took.
        seconds: How long the image itself took.
    """

    container: str
    environ: dict[str, str]
    num_bytes: int
    base_bytes: int
    base_seconds: float
    seconds: float

    def run(self, *command: str, job: pathlib.Path) -> subprocess.CompletedProcess:
        """Returns how a command ended in the container, as its user, with no network.

        Args:
            command: The program and its arguments.
            job: Folder of this machine that the container has as /job.
        """
        return subprocess.run(
            [  # buildah's own --network=none does nothing where isolation is chroot.
                *("unshare", "--net", "buildah", "run", "--volume", f"{job}:/job"),
                *(self.container, "--", *command),
            ],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def entrypoint(self) -> list[str]:
        """Returns the command of the image, which `run` does not add by itself."""
        template = "{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}"
        return _said(
            self.environ, "inspect", "--format", template, self.container
        ).split()


def missing() -> str | None:
    """Returns why no image can be built here, None where one can be."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"there is no {' and no '.join(absent)}; apt-get install {absent[0]}"
    return None if os.geteuid() == 0 else "only root can build an image so"


@contextlib.contextmanager
def built(scratch: pathlib.Path, environ: dict[str, str]) -> Iterator[Image]:
    """Yields the cpu image, built by `make image`; in the end nothing of it is left.

    Args:
        scratch: An empty folder, for all that buildah keeps: 5 GB.
        environ: The environment, with what leads to the registries of packages.
    """
    settings = scratch / "storage.conf"
    settings.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{scratch / "graph"}"\n'
        f'runroot = "{scratch / "run"}"\n',
        encoding="utf-8",
    )
    environ = {
        **environ,
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_STORAGE_CONF": str(settings),
        "TMPDIR": str(scratch),
    }
    try:
        began = time.monotonic()
        base_bytes = _make_base(environ)
        based = time.monotonic()
        _make_image(environ)
        ended = time.monotonic()
        container = _said(environ, "from", "segtrainer")
        yield Image(
            container=container,
            environ=environ,
            num_bytes=_size(_said(environ, "mount", container)),
            base_bytes=base_bytes,
            base_seconds=based - began,
            seconds=ended - based,
        )
    finally:
        _said(environ, "rm", "--all")
        _said(environ, "rmi", "--all", "--force")
        shutil.rmtree(scratch)


def _make_base(environ: dict[str, str]) -> int:
    """Makes what stands in for python:3.11-slim, and returns its size in bytes."""
    container = _said(environ, "from", "scratch")
    folder = _said(environ, "mount", container)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
    subprocess.run([*command, SUITE, folder], env=environ, check=True)
    size = _size(folder)
    _said(environ, "commit", "--quiet", "--rm", container, BASE_IMAGE)
    return size


def _make_image(environ: dict[str, str]) -> None:
    there = [path for path in PIP_FILES if pathlib.Path(path).exists()]
    volumes = [f"--volume {path}:{path}:ro" for path in there]
    command = ["make", "image", "BUILDER=buildah", f"BASE_IMAGE={BASE_IMAGE}"]
    command += ["IMAGE=segtrainer", "VARIANT=cpu", f"IMAGE_FLAGS={' '.join(volumes)}"]
    subprocess.run(command, cwd=REPOSITORY, env=environ, check=True)


def _said(environ: dict[str, str], *arguments: str) -> str:
    """Returns what buildah prints."""
    command = ["buildah", *arguments]
    done = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def _size(folder: str) -> int:
    """Returns the bytes of all files in a folder."""
    command = ["du", "--summarize", "--bytes", folder]
    return int(subprocess.check_output(command, text=True).split()[0])
