"""The workers of a run, as TF_CONFIG lists them, and which of them this process is."""

import dataclasses
import json
from collections.abc import Mapping

# Tasks that Vertex AI lists in TF_CONFIG and that take no part in the steps: the servers
# of its reduction, shown as "ps", and evaluators. With them the strategy never starts.
NO_WORKERS = ("ps", "evaluator")
CHIEF = {"master": "chief"}  # An older name that Vertex AI may use.


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, the chief first, and which of them this process is."""

    jobs: dict[str, list[str]]  # "chief" and "worker" -> HOST:PORT of each task.
    job: str
    task: int

    @property
    def size(self) -> int:
        """Returns how many workers there are."""
        return sum(map(len, self.jobs.values()))

    @property
    def index(self) -> int:
        """Returns the number of this worker, 0 for the chief."""
        return self.task + (
            len(self.jobs.get("chief", ())) if self.job != "chief" else 0
        )


def read_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """Returns what TF_CONFIG says of several workers; None for a single one.

    Raises:
        ValueError: If it is malformed, or the process is none of the workers.
    """
    text = environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        told = json.loads(text)
        cluster, this = told.get("cluster", {}), told.get("task", {})
        jobs = {CHIEF.get(job, job): list(tasks) for job, tasks in cluster.items()}
        job, task = CHIEF.get(this.get("type"), this.get("type")), this.get("index")
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f"TF_CONFIG must be JSON with cluster and task, got {text!r}"
        ) from None
    # The chief first, in whatever order they are told.
    jobs = {j: jobs[j] for j in sorted(jobs) if j not in NO_WORKERS and jobs[j]}
    if job in NO_WORKERS:
        raise ValueError(
            f"TF_CONFIG must make this process the chief or a worker, got {job}, which "
            "this program does not serve as; leave that worker pool out"
        )
    if sum(map(len, jobs.values())) < 2:
        return None
    # Vertex AI sends the index as text.
    number = int(task) if str(task).isdigit() else -1
    if set(jobs) - {"chief", "worker"} or not 0 <= number < len(jobs.get(job, ())):
        raise ValueError(
            f"TF_CONFIG must have this task among its chief and workers, got {job} "
            f"{task} in {json.dumps(jobs)}"
        )
    return Cluster(jobs, job, number)
