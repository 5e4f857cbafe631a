"""Every setting of an order: flag, default, unit, help, and what it must be by itself."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainer import flags
from trainer.config import KINDS
from trainer.flags import setting

# Set in every container by the service, for the trainer to read.
OF_THE_SERVICE = ("AIP_", "CLOUD_ML_", "TF_CONFIG", "CLUSTER_SPEC")
MAX_ENV, MAX_LABELS = 100, 64
MAX_ARGS_CHARACTERS = 100_000
# Of TPU v2 and v3: cores of one host, by which the service counts them. Of v5e: all chips.
# Source: cloud.google.com/vertex-ai/docs/training/training-with-tpu-vm, tpu/docs/v5e.
HOST_CORES = 8
COUNTED_IN_CORES = ("TPU_V2", "TPU_V3")
TOPOLOGIES = {
    "ct5lp-hightpu-1t": "1x1",
    "ct5lp-hightpu-4t": "2x2",
    "ct5lp-hightpu-8t": "2x4",
}
MOST_SECONDS = 10**9  # No limit of the service's: it keeps nonsense off the wire.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """One job: where, with which image, on which machines, for how long, as whom.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """

    # fmt: off
    job_name: str | None = setting("Job", None, "Name of the job and of its folder in the bucket: ordered again under this name, it goes on from its checkpoints.")
    project: str | None = setting("Job", None, "Google Cloud project; then GOOGLE_CLOUD_PROJECT.")
    region: str | None = setting("Job", None, "Region of the job, best the bucket's; then GOOGLE_CLOUD_REGION.")
    regions: tuple[str, ...] | None = setting("Job", None, "Regions to try one after the other, separated by commas, instead of region: the next where an order is refused for want of quota, with --wait also where a job ends for want of machines. A job that is queued for quota is waited for.")
    bucket: str | None = setting("Job", None, "gs://BUCKET or gs://BUCKET/FOLDER: the job writes to the folder JOB_NAME in it.")
    image: str | None = setting("Job", None, "Container image of the trainer, or that package is installed in.")
    package: str | None = setting("Job", None, "sdist of the trainer, local (it is uploaded to the bucket) or gs://, that the service installs in the image before it starts.")
    env: tuple[str, ...] | None = setting("Job", None, "NAME=VALUE,NAME=VALUE: further environment variables.")
    labels: tuple[str, ...] | None = setting("Job", None, "KEY=VALUE,KEY=VALUE: labels of the job, by which it is billed and found.")

    machine_type: str = setting("Machines", "n1-standard-8", "Machine of each worker.")
    num_workers: int = setting("Machines", 1, "Machines that train, the chief included.", low=1, high=10_000)
    accelerator_type: str | None = setting("Machines", None, "GPU, such as NVIDIA_L4; TPU machines need none.")
    accelerator_count: int | None = setting("Machines", None, "GPUs of each machine; 1 when only their type is given. Of TPU_V2 and TPU_V3 the cores, 8.", low=1)
    tpu_topology: str | None = setting("Machines", None, "Shape of the TPU slice, such as 2x2; all chips of a ct5lp machine when absent.")
    reduction_servers: int = setting("Machines", 0, "Machines of a Reduction Server, which adds the gradients of GPU workers; the image needs google-reduction-server.", low=0, high=10_000)
    reduction_server_machine_type: str = setting("Machines", "n1-highcpu-16", "Machine of the Reduction Server.")
    reduction_server_image: str = setting("Machines", "us-docker.pkg.dev/vertex-ai-restricted/training/reductionserver:latest", "Image of the Reduction Server.")
    boot_disk_type: str | None = setting("Machines", None, "Disk of each machine, such as pd-ssd; what the service has for the machine when absent.")
    boot_disk_size_gb: int | None = setting("Machines", None, "Size of that disk, GB; the service's default is 100.", low=100, high=64000)

    scheduling: str = setting("Scheduling", "standard", "standard; spot, which is cheaper and may be taken away; flex_start, which waits for GPUs.", choices=("standard", "spot", "flex_start"))
    max_wait_seconds: int | None = setting("Scheduling", None, "With flex_start: longest wait for machines, 0 for ever; the service's default is a day.", low=0, high=MOST_SECONDS)
    timeout_seconds: int | None = setting("Scheduling", None, "Longest run; the service's default is 7 days.", low=1, high=MOST_SECONDS)
    restart_job_on_worker_restart: bool = setting("Scheduling", False, "Restart all workers when one is restarted.")
    disable_retries: bool = setting("Scheduling", False, "Do not start the job again after an error of the service.")

    service_account: str | None = setting("Access", None, "Service account that the job runs as; the service's own agent when absent.")
    network: str | None = setting("Access", None, "Peered network: projects/NUMBER/global/networks/NAME.")
    kms_key: str | None = setting("Access", None, "Key that encrypts all that the service keeps: projects/P/locations/REGION/keyRings/RING/cryptoKeys/KEY.")
    tensorboard: str | None = setting("Access", None, "Instance that curves are streamed to: projects/NUMBER/locations/REGION/tensorboards/ID; needs service_account.")
    web_access: bool = setting("Access", False, "Let those who may open a shell in the running containers.")
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        _check_shapes(self)
        if self.regions and len(set(self.regions)) < len(self.regions):
            raise ValueError(
                f"regions must be named once each, got {','.join(self.regions)}"
            )
        if self.region is not None and self.regions is not None:
            raise ValueError(
                f"give region or regions, got both: {self.region} and "
                f"{','.join(self.regions)}"
            )
        for name, _ in pairs("env", self.env):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(
                    "env must be NAME=VALUE with a name of letters, digits and _, got "
                    f"{name!r}"
                )
            if name.startswith(OF_THE_SERVICE):
                raise ValueError(
                    f"env must leave {name} to the service, which sets it; leave it out"
                )
        if len(self.env or ()) > MAX_ENV:
            raise ValueError(
                f"env must be at most {MAX_ENV} variables, got {len(self.env or ())}"
            )
        for key, value in pairs("labels", self.labels):
            if not all(
                re.fullmatch(r"[\w-]{0,64}", text) and text == text.lower()
                for text in (key, value)
            ):
                raise ValueError(
                    "labels must be KEY=VALUE of at most 64 lower-case letters, digits, "
                    f"_ and - each, got {key}={value}"
                )
        if len(self.labels or ()) > MAX_LABELS:
            raise ValueError(
                f"labels must be at most {MAX_LABELS}, got {len(self.labels or ())}"
            )

    @property
    def places(self) -> tuple[str, ...]:
        """The regions to try, in turn."""
        return self.regions or ((self.region,) if self.region else ())

    @property
    def on_tpu(self) -> bool:
        """Whether the machines are TPU machines, which the service treats otherwise."""
        return bool(
            self.tpu_topology
            or re.match(r"cloud-tpu|ct\d", self.machine_type)
            or (self.accelerator_type or "").startswith("TPU")
        )

    @property
    def accelerators(self) -> int:
        """Accelerators of each machine, where their type is given."""
        if self.accelerator_type is None:
            return 0
        in_cores = self.accelerator_type in COUNTED_IN_CORES
        return self.accelerator_count or (HOST_CORES if in_cores else 1)

    @property
    def gpus(self) -> int:
        """GPUs of each machine."""
        return 0 if self.on_tpu else self.accelerators

    @property
    def topology(self) -> str | None:
        """Shape of the TPU slice: all chips of one host where it is not given."""
        return self.tpu_topology or TOPOLOGIES.get(self.machine_type)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search for the best settings: the space, the goal, the trials.

    Raises:
        ValueError: One line: the rule, the value, the way out.
    """

    # fmt: off
    search: tuple[str, ...] | None = setting("Search", None, "Space of the trainer's settings, separated by commas: NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A/B/C.")
    search_space: str | None = setting("Search", None, "The same as a YAML file: NAME: {min: LOW, max: HIGH, scale: log} or NAME: [A, B, C].")
    metric: str | None = setting("Search", None, "What the trials are judged by, a metric of validation; then the trainer's hp_metric.")
    goal: str | None = setting("Search", None, "Whether more of it is better; less of a loss and more of anything else when absent.", choices=("minimize", "maximize"))
    trials: int = setting("Search", 10, "Trials at the most.", low=1, high=100_000)
    parallel_trials: int | None = setting("Search", None, "Trials at a time; the fewer, the better informed each is; 2 when absent.", low=1, high=1000)
    max_failed_trials: int | None = setting("Search", None, "Failed trials after which the search ends; a quarter of the trials when absent.", low=1)
    algorithm: str = setting("Search", "bayesian", "How settings are chosen.", choices=("bayesian", "random", "grid"))
    measurement: str = setting("Search", "best", "Which measurement of a trial counts.", choices=("best", "last"))
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)
        if (self.parallel_trials or 0) > self.trials:
            raise ValueError(
                f"parallel_trials must be at most trials, {self.trials}, got "
                f"{self.parallel_trials}"
            )
        if (self.max_failed_trials or 0) > self.trials:
            raise ValueError(
                f"max_failed_trials must be at most trials, {self.trials}, got "
                f"{self.max_failed_trials}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sending:
    """How an order is sent."""

    # fmt: off
    dry_run: bool = setting("Sending", False, "Print the request as JSON, send nothing; needs no credentials.")
    wait: bool = setting("Sending", False, "Wait until the job has ended; exit with 1 unless it succeeded.")
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """How the service is asked."""

    # fmt: off
    poll_seconds: float = setting("Asking", 20.0, "Seconds between looks at a job that is waited for.", low=0.01, high=86_400)
    api_endpoint: str | None = setting("Asking", None, "Address of the API where it is not the region's own; to http:// no credentials are sent.")
    # fmt: on

    def __post_init__(self) -> None:
        flags.check(self)


def parallel(search: Search) -> int:
    """Returns the number of trials at a time."""
    return search.parallel_trials or min(2, search.trials)


def most_failures(search: Search) -> int:
    """Returns the number of failed trials after which a search ends.

    Never 0, which means to the service that a first trial that fails ends all.
    """
    return search.max_failed_trials or max(1, search.trials // 4)


def read(
    args: Sequence[str], environ: Mapping[str, str], *kinds: type
) -> tuple[list[Any], list[str]]:
    """Returns the settings of each kind, and the trainer's arguments, those after `--`.

    Raises:
        ValueError: One line about the flag that is unknown, malformed, out of range
            or in conflict.
    """
    cut = list(args).index("--") if "--" in args else len(args)
    ours, trainer_args = list(args[:cut]), list(args[cut + 1 :])
    known = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    for arg in ours:
        name = re.split("=", arg.lstrip("-"), maxsplit=1)[0]
        if arg.startswith("-") and name not in known and name in _OF_TRAINER:
            raise ValueError(f"{name} is a flag of the trainer: give it after --")
    for arg in trainer_args:
        # absl's own, which would pass here and fail where the job runs.
        if found := re.match("--?(flagfile|undefok|help)(=|$)", arg):
            raise ValueError(
                f"{found[1]} cannot be ordered; python -m trainer.task --help shows what can"
            )
    if (length := sum(map(len, trainer_args))) > MAX_ARGS_CHARACTERS:
        raise ValueError(
            f"the trainer's flags must be at most {MAX_ARGS_CHARACTERS} characters, "
            f"got {length}"
        )
    values = flags.read(ours, *kinds)
    for name, variable in _VARIABLES.items():
        instead = "regions" if name == "region" and "regions" in known else name
        if name in known and not values[name].present and not values[instead].present:
            values[name].value = environ.get(variable) or None
    return [flags.make(kind, values) for kind in kinds], trainer_args


def pairs(
    name: str,
    texts: Sequence[str] | None,
    form: str = "KEY=VALUE,KEY=VALUE, a value without comma",
) -> list[tuple[str, str]]:
    """Returns KEY=VALUE texts as pairs.

    Args:
        name: Of the setting.
        texts: Its parts.
        form: What they must be, for a message.

    Raises:
        ValueError: If one has no = or a key comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ValueError(f"{name} must be {form}, got {text!r}")
        if key in found:
            raise ValueError(f"{name} must name each one once, got {key} twice")
        found[key] = value
    return list(found.items())


_VARIABLES = {"project": "GOOGLE_CLOUD_PROJECT", "region": "GOOGLE_CLOUD_REGION"}
_OF_TRAINER = frozenset(f.name for kind in KINDS for f in dataclasses.fields(kind))
_SHAPES = {
    "job_name": (
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}",
        "up to 128 letters, digits, _, - and .",
    ),
    "project": (r"[a-z0-9.:-]+", "the id of a project, such as my-project"),
    "region": (r"[a-z]+(-[a-z]+)+[0-9]+", "a region, such as us-central1"),
    "bucket": (
        r"gs://[a-z0-9][a-z0-9_.-]+[a-z0-9](/[^/\s*?#\[\]]+)*/?",
        "gs://BUCKET or gs://BUCKET/FOLDER",
    ),
    "package": (r".+\.(tar\.gz|whl)", "an sdist, NAME.tar.gz, or a wheel"),
    "network": (
        r"projects/[0-9]+/global/networks/[^/]+",
        "projects/NUMBER/global/networks/NAME",
    ),
    "kms_key": (
        r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+",
        "projects/P/locations/REGION/keyRings/RING/cryptoKeys/KEY",
    ),
    "tensorboard": (
        r"projects/[^/]+/locations/[^/]+/tensorboards/[^/]+",
        "projects/NUMBER/locations/REGION/tensorboards/ID",
    ),
    "service_account": (r"[^@\s]+@[^@\s]+", "an address, NAME@PROJECT.iam...com"),
    "tpu_topology": (r"[0-9]+(x[0-9]+)+", "sides such as 2x2"),
}


def _check_shapes(order: Order) -> None:
    """Raises ValueError where a name is not even of the form that the service takes."""
    for name, (pattern, what) in _SHAPES.items():
        value = getattr(order, name)
        if value is not None and not re.fullmatch(pattern, value):
            raise ValueError(f"{name} must be {what}, got {value!r}")
    for place in order.regions or ():
        if not re.fullmatch(_SHAPES["region"][0], place):
            raise ValueError(
                f"regions must be names such as us-central1, got {place!r}"
            )
