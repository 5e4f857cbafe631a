"""The processes of an order on this machine, with what Vertex AI sets in each.

Source: cloud.google.com/vertex-ai/docs/training/code-requirements and
distributed-training, environment variables.
"""

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from deploy import spec
from deploy.order import OF_THE_SERVICE, Order, pairs

# TF_CONFIG's names of worker pools 0 and 1.
TASKS = {"workerpool0": "chief", "workerpool1": "worker"}
HOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True)
class Replica:
    """One process: one replica of one worker pool.

    Attributes:
        name: POOL-INDEX, such as workerpool1-0; the chief is workerpool0-0.
        command: What is run.
        environment: All of its environment.
    """

    name: str
    command: list[str]
    environment: dict[str, str]


def of_job(
    order: Order,
    trainer_args: Sequence[str],
    folder: str,
    job_id: str,
    environ: Mapping[str, str],
    trial: str | None = None,
    gpus: Sequence[str] | None = None,
) -> list[Replica]:
    """Returns the processes of a job, the chief first.

    Args:
        order: What is asked for.
        trainer_args: Flags of the trainer.
        folder: The base output directory; a trial writes to a folder of its own in it.
        job_id: The number of the job.
        environ: What all processes inherit.
        trial: The number of the trial in a search.
        gpus: GPUs that they share out, as CUDA names them; None leaves all as it is.
    """
    sizes = {"workerpool0": 1, "workerpool1": order.num_workers - 1}
    ports = iter(_free_ports(order.num_workers))
    cluster = {
        pool: [f"{HOST}:{next(ports)}" for _ in range(size)]
        for pool, size in sizes.items()
        if size
    }
    base = os.path.join(folder, trial) if trial else folder
    ours = {k: v for k, v in environ.items() if not k.startswith(OF_THE_SERVICE)}
    shared = {
        **ours,
        "CLOUD_ML_JOB_ID": job_id,
        "CLOUD_ML_PROJECT_ID": order.project or "local",
        "AIP_MODEL_DIR": f"{base}/model/",
        "AIP_CHECKPOINT_DIR": f"{base}/checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": f"{base}/logs/",
        **dict(pairs("env", order.env)),
    }
    if trial:
        shared["CLOUD_ML_TRIAL_ID"] = trial
        shared["CLOUD_ML_HP_METRIC_FILE"] = metric_file(base)
    told = json.dumps({"workerPoolSpecs": spec.pools(order, trainer_args)})
    found: list[Replica] = []
    for pool, hosts in cluster.items():
        for index in range(len(hosts)):
            variables = _cluster_variables(cluster, pool, index, trial, told)
            if gpus is not None:
                first = len(found) * order.gpus
                own = ",".join(gpus[first : first + order.gpus])
                variables["CUDA_VISIBLE_DEVICES"] = own
            command = [sys.executable, "-m", spec.MODULE, *trainer_args]
            replica = Replica(f"{pool}-{index}", command, {**shared, **variables})
            found.append(replica)
    return found


def metric_file(base: str) -> str:
    """Returns where a trial's metric is written, on the local disk."""
    if base.startswith("gs://"):
        raise ValueError(f"a search must write to a local folder, got {base}")
    return f"{base}/hypertune/output.metrics"


def lacks(order: Order, num_gpus: int, trials_at_once: int = 1) -> list[str]:
    """Returns what of an order cannot be had on this machine, and is left out.

    Args:
        order: What is asked for.
        num_gpus: GPUs of this machine.
        trials_at_once: Jobs that run at the same time.

    Raises:
        ValueError: If it cannot run without.
    """
    if order.on_tpu and not glob.glob("/dev/accel*"):
        raise ValueError(
            f"this machine has no TPU, got {order.machine_type}; give another machine "
            "type to try the order here"
        )
    wanted = order.gpus * order.num_workers * trials_at_once
    if 0 < num_gpus < wanted:
        raise ValueError(
            f"this machine has {num_gpus} GPUs, the order asks for {wanted}; give a "
            "smaller accelerator_count, num_workers or parallel_trials"
        )
    missing = []
    if wanted and not num_gpus:
        missing.append(
            f"{order.gpus} {order.accelerator_type} of each worker (it trains on the "
            "CPU, one replica, so that the global batch is smaller where batch_size is "
            "given)"
        )
    if order.reduction_servers:
        missing.append("Reduction Server (the workers add gradients themselves)")
    if order.image or order.package:
        missing.append("image (this Python runs the trainer that it has)")
    return missing


def gpus_here(environ: Mapping[str, str]) -> list[str]:
    """Returns the GPUs that may be used, as CUDA names them: all, or those chosen."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [one for one in chosen.split(",") if one and one != "-1"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listed = subprocess.run(
        [program, "-L"], capture_output=True, text=True, check=False
    )
    # A line each, whose name may have the word once more; parts of one are indented.
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    count = sum(line.startswith("GPU ") for line in lines)
    return [str(number) for number in range(count)]


def _cluster_variables(
    cluster: dict[str, list[str]], pool: str, index: int, trial: str | None, job: str
) -> dict[str, str]:
    """Returns CLUSTER_SPEC, and TF_CONFIG where there are several replicas."""
    task: dict[str, str | int] = {"type": pool, "index": index}
    if trial:
        task["trial"] = trial
    shared = {"environment": "cloud", "job": job}
    variables = {"CLUSTER_SPEC": json.dumps(dict(cluster=cluster, task=task, **shared))}
    if sum(map(len, cluster.values())) > 1:
        jobs = {TASKS[name]: hosts for name, hosts in cluster.items()}
        task = {**task, "type": TASKS[pool], "cloud": ""}
        variables["TF_CONFIG"] = json.dumps(dict(cluster=jobs, task=task, **shared))
    return variables


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [
            held.enter_context(socket.create_server((HOST, 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in sockets]
