"""Runs a Google Cloud Storage of one's own, for trying things by hand.

    python -m tests.gcs --upload=FOLDER=gs://pets/data --latency_ms=30 -- COMMAND ...

runs a command that finds it, and ends with the command's exit code. Without a command it
prints what to paste into another shell, and runs until Ctrl-C.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator

from tests.gcs import programs, server


def main() -> int:
    """Returns the exit code of the command, 0 without one."""
    args = _parser().parse_args()
    # Everything is ended and removed, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    uploads = [text.partition("=gs://")[::2] for text in args.upload]
    buckets = {path.split("/")[0] for _, path in uploads} | set(args.bucket)
    if reason := programs.missing():
        sys.exit(reason)
    with server.serve() as gcs:
        for bucket in sorted(buckets):
            gcs.make_bucket(bucket)
        for folder, path in uploads:
            gcs.upload(folder, f"gs://{path}")
        gcs.set_faults(**_faults(args))
        if args.command:
            return _run(args.command, gcs.environment)
        for name, value in gcs.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"# faults, which may be changed: {gcs.settings}")
        print(f"# requests: {gcs.log}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gcs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--bucket", action="append", default=[], metavar="NAME", help="make one")
    add(
        "--upload",
        action="append",
        default=[],
        type=_upload,
        metavar="FOLDER=gs://NAME/PREFIX",
        help="copy a folder into a bucket, which is made",
    )
    add("--latency_ms", type=float, default=0.0, help="of each request")
    add("--bandwidth_mb", type=float, help="MB/s of each connection, each way")
    add("--error_share", type=float, default=0.0, help="answered 429, 500 or 503")
    add("--cut_share", type=float, default=0.0, help="cut in the middle of the body")
    add("--lost_share", type=float, default=0.0, help="done, but with no answer")
    add("--slow_share", type=float, default=0.0, help="answered later")
    add("--slow_seconds", type=float, default=1.0, help="by so much")
    add("--drop_from", type=int, metavar="N", help="nothing from request N on")
    add("--drop_counts_writes_only", action="store_true")
    add(
        "--deny",
        action="append",
        default=[],
        metavar="PERMISSION[=PREFIX]",
        help="such as storage.objects.get; =!PREFIX denies all but those",
    )
    add("--seed", type=int, default=0, help="of the faults")
    add("command", nargs="*", help="after --")
    return parser


def _upload(text: str) -> str:
    folder, found, _ = text.partition("=gs://")
    if not found or not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(
            f"must be FOLDER=gs://NAME/PREFIX with a folder that is there, got {text}"
        )
    return text


def _faults(args: argparse.Namespace) -> dict:
    """Returns the flags as `Faults`."""
    same = [
        *("error_share", "cut_share", "lost_share", "slow_share", "slow_seconds"),
        *("drop_from", "drop_counts_writes_only", "seed"),
    ]
    bandwidth = args.bandwidth_mb
    return {name: getattr(args, name) for name in same} | dict(
        latency_seconds=args.latency_ms / 1e3,
        bytes_per_second=None if bandwidth is None else bandwidth * 1e6,
        denied=dict(text.partition("=")[::2] for text in args.deny),
    )


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Returns the exit code of a command, 128 and more if a signal ended it."""
    with _ended(subprocess.Popen(command, env={**os.environ, **environment})) as child:
        while True:
            # The terminal sends it to the command too, which ends when it has saved.
            with contextlib.suppress(KeyboardInterrupt):
                code = child.wait()
                return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _ended(child: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Ends a command that still runs, and waits for it."""
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
