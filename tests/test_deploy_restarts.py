"""Processes are started again by Vertex AI's rules, and end with the chief."""

import pathlib
import subprocess
import sys
import threading
import time

import pytest

from deploy import restarts
from deploy.replicas import Replica
from deploy.restarts import Job


@pytest.fixture
def job(tmp_path):
    """Makes jobs of shell scripts; what they say is in `job.said`, starts in `starts`.

    Each script knows how often it has been started, $N, from 1.
    """

    def make(*scripts, **settings):
        found = []
        for index, script in enumerate(scripts):
            count = f"echo >> {tmp_path}/{index}; N=$(wc -l < {tmp_path}/{index})"
            command = ["sh", "-c", f"{count}; {script}"]
            found.append(Replica(f"workerpool{min(index, 1)}-{index}", command, {}))
        return Job(found, lambda name, line: make.said.append((name, line)), **settings)

    make.said = []
    make.starts = lambda index: len((tmp_path / str(index)).read_text())
    return make


def test_the_success_of_the_chief_ends_the_job(job):
    assert job("sleep 0.2", "sleep 600").run() == 0
    assert (job.starts(0), job.starts(1)) == (1, 1)


def test_a_worker_that_is_done_before_the_chief_is_not_started_again(job):
    assert job("sleep 0.2", "exit 0").run() == 0
    assert job.starts(1) == 1


def test_a_process_that_fails_is_started_again(job):
    assert job("[ $N = 4 ]").run() == 0
    assert job.starts(0) == 4
    assert job.said == [
        ("job", f"workerpool0-0 left with 1; restart {n} of 5") for n in (1, 2, 3)
    ]


def test_after_five_restarts_the_job_is_started_again_up_to_three_times(job):
    assert job("exit 7").run() == 7
    assert job.starts(0) == (1 + 5) * (1 + 3)
    assert job.said[5] == ("job", "workerpool0-0 left with 7; retry 1 of 3")
    assert job.said[-1] == (
        "job",
        "workerpool0-0 left with 7; no restart and no retry is left",
    )


def test_a_worker_that_keeps_failing_ends_the_job_though_the_chief_goes_on(job):
    assert job("exec sleep 600", "exit 7").run() == restarts.FAILED
    assert (job.starts(0), job.starts(1)) == (4, 24)


def test_without_retries_the_job_is_not_started_again(job):
    assert job("exit 7", disable_retries=True).run() == 7
    assert job.starts(0) == 6


def test_what_the_trainer_refuses_is_not_tried_again(job):
    assert job("exec sleep 600", "exit 2").run() == 2
    assert (job.starts(0), job.starts(1)) == (1, 1)


def test_a_process_that_is_killed_has_the_code_that_a_shell_gives_it(job):
    assert job("kill -9 $$", disable_retries=True).run() == 137


def test_all_are_started_again_with_one_where_that_is_asked_for(job, tmp_path):
    # Neither goes on before the other has begun as often: it would not be counted.
    begun = [f'until [ "$(wc -l < {tmp_path}/{index})" = ' for index in (0, 1)]
    scripts = (
        begun[1] + "3 ]; do sleep 0.02; done 2>/dev/null",
        begun[0] + "$N ]; do sleep 0.02; done 2>/dev/null; "
        "[ $N -lt 3 ] && exit 1; exec sleep 600",
    )
    assert job(*scripts, restart_all=True).run() == 0
    assert (job.starts(0), job.starts(1)) == (3, 3)


def test_processes_are_preempted_one_after_the_other_and_it_costs_no_restart(job):
    script = "trap 'exit 143' TERM; [ $N = 5 ] && exit 0; while :; do sleep 0.02; done"
    other = "trap 'exit 143' TERM; while :; do sleep 0.02; done"
    # Long enough for each to begin; a bound, should one not have been counted.
    settings = dict(preempt_every_seconds=0.5, preemptions=8, timeout_seconds=60)
    assert job(script, other, **settings).run() == 0
    taken = [name for name, line in job.said if "is preempted" in name + line]
    assert len(taken) == 7
    assert (job.starts(0), job.starts(1)) == (5, 4)
    left = [line for _, line in job.said if "left" in line]
    assert len(left) == 7
    assert all("its machine is given again" in line for line in left)


def test_no_more_are_preempted_than_asked_for(job):
    script = "trap 'exit 143' TERM; [ $N = 3 ] && exec sleep 1; exec sleep 600"
    settings = dict(preempt_every_seconds=0.5, preemptions=2, timeout_seconds=60)
    assert job(script, **settings).run() == 0
    assert job.starts(0) == 3


def test_a_job_ends_after_its_timeout(job):
    assert job("exec sleep 600", timeout_seconds=0.2).run() == restarts.TIMED_OUT


def test_a_job_that_is_told_to_stop_lets_its_processes_save(job, tmp_path):
    script = f"trap 'echo saved > {tmp_path}/saved; exit 143' TERM; echo begun; "
    running = job(script + "while :; do sleep 0.02; done")
    begun = threading.Event()
    running._say = lambda name, line: begun.set()
    threading.Thread(target=lambda: begun.wait() and running.stop()).start()
    assert running.run() == restarts.STOPPED
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_what_processes_say_is_told_with_their_names(job):
    said = """echo '{"severity": "INFO", "message": "a step"}'; echo bare >&2"""
    assert job(said).run() == 0
    assert job.said == [("workerpool0-0", "a step"), ("workerpool0-0", "bare")]


def test_what_a_process_has_started_ends_with_it(job, tmp_path):
    # Its child holds the pipe open, and would be waited for.
    assert job(f"sleep 600 & echo $! > {tmp_path}/child; exit 0").run() == 0
    child = int((tmp_path / "child").read_text())
    give_up = time.monotonic() + 30  # It was killed, and dies when it gets a core.
    while is_alive(child):
        assert time.monotonic() < give_up
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    """Returns whether there is such a process, and not only its exit code."""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_line_that_cannot_be_said_holds_up_nothing(tmp_path):
    def say(name: str, line: str) -> None:
        raise OSError("nobody listens")

    command = ["sh", "-c", "echo a; echo b; exit 0"]
    assert Job([Replica("workerpool0-0", command, {})], say).run() == 0


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"severity": "INFO", "message": "a step"}', "a step"),
        ('{"severity": "ERROR", "message": "no"}', "ERROR: no"),
        ('{"step": 3}', '{"step": 3}'),
        ("[1, 2]", "[1, 2]"),
        ("bare", "bare"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_log_line_is_told_in_its_words(line, words):
    assert restarts.message(line) == words


def test_jobs_run_side_by_side_and_end_at_a_signal(tmp_path):
    code = (
        "import os, signal, sys, threading\n"
        "from deploy import restarts, side_by_side\n"
        "from deploy.replicas import Replica\n"
        "def job():\n"
        "    return restarts.Job([Replica('a', ['sleep', '600'], {})], print)\n"
        "with side_by_side.running(2) as jobs:\n"
        "    both = [jobs.start(job()) for _ in range(2)]\n"
        "    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()\n"
        "    sys.exit(max(map(jobs.exit_code, both)))\n"
    )
    path = tmp_path / "both.py"
    path.write_text(code)
    root = pathlib.Path(restarts.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, str(path)], timeout=60, check=False, env={"PYTHONPATH": root}
    )
    assert ran.returncode == 143
