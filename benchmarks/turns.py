"""Lets libraries that must not share a process take turns: one line asks, one answers.

Nothing but the standard library: each side imports it in an environment of its own.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import machine


class Side:
    """A process that computes only while it is asked."""

    def __init__(self, command: list[str], **environ: str) -> None:
        """Starts it.

        Args:
            command: Ends up in `serve`.
            environ: Variables of its environment, beside those of this process.
        """
        self.process = subprocess.Popen(
            command,
            cwd=machine.REPOSITORY,
            env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for who asks.
        )

    def ask(self, name: str, *values: Any) -> Any:
        """Returns the answer of the function of this name to these JSON values.

        Raises:
            RuntimeError: If it failed, or the process is gone.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([name, *values]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def end(self) -> None:
        """Ends the process, even in the middle of an answer."""
        with self.process:
            self.process.kill()


def serve(functions: Mapping[str, Callable]) -> None:
    """Answers each line of the standard input until that is closed.

    Args:
        functions: By name; they take and return JSON values.
    """
    # What a library prints would be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, *values = json.loads(line)
        try:
            answer = {"value": functions[name](*values)}
        except Exception as error:  # noqa: BLE001 -- whoever asked decides
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first}"}
        print(json.dumps(answer), file=answers, flush=True)
