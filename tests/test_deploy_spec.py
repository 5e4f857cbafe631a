"""An order becomes one whole request, and is refused where it breaks a rule."""

import dataclasses
import json
import re

import pytest

from deploy import jobs, local, submit, tune
from deploy.order import Asking, Order, Search, Sending
from tests.orders import NAMED, ORDERS, TRAINER

L4 = "--accelerator_type=NVIDIA_L4"
SEARCH = "--search=learning_rate=0.001..0.1"
BOARD = "projects/1/locations/europe-west4/tensorboards/2"
KEY = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"


@pytest.fixture(autouse=True)
def _no_project(monkeypatch):
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_becomes_its_whole_request(name, capsys):
    order = ORDERS[name]
    module, *args = order.command
    main = submit.main if module == "deploy.submit" else tune.main
    ours, trainers = args[: args.index("--")], args[args.index("--") :]
    assert main([*ours, "--dry_run", *trainers]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == order.request
    assert err == (
        "not sent: POST https://us-central1-aiplatform.googleapis.com/v1/projects/"
        f"my-project/locations/us-central1/{order.kind}\n"
    )


def test_a_package_runs_in_the_image(tmp_path, capsys):
    package = tmp_path / "segtrainer-0.1.0.tar.gz"
    package.touch()
    args = [*NAMED, f"--package={package}", "--env=A=1", "--dry_run", "--", *TRAINER]
    assert submit.main(args) == 0
    [pool] = json.loads(capsys.readouterr().out)["jobSpec"]["workerPoolSpecs"]
    assert "containerSpec" not in pool
    assert pool["pythonPackageSpec"] == {
        "executorImageUri": "us-docker.pkg.dev/p/r/segtrainer:1",
        "packageUris": ["gs://pets/jobs/_packages/pets-1/segtrainer-0.1.0.tar.gz"],
        "pythonModule": "trainer.task",
        "args": TRAINER,
        "env": [{"name": "A", "value": "1"}],
    }


def test_a_container_finds_weights_on_gs_and_below_gcs(capsys):
    for weights in ("gs://pets/w.weights.h5", "/gcs/pets/w.weights.h5"):
        asked = [*TRAINER, f"--encoder_weights={weights}"]
        assert submit.main([*NAMED, "--dry_run", "--", *asked]) == 0
        [pool] = json.loads(capsys.readouterr().out)["jobSpec"]["workerPoolSpecs"]
        assert f"--encoder_weights={weights}" in pool["containerSpec"]["args"]


def test_the_folder_is_the_same_each_time(capsys):
    folders = set()
    for bucket in ("--bucket=gs://pets/jobs", "--bucket=gs://pets/jobs/"):
        assert submit.main([*NAMED, bucket, "--dry_run", "--", *TRAINER]) == 0
        spec = json.loads(capsys.readouterr().out)["jobSpec"]
        folders.add(spec["baseOutputDirectory"]["outputUriPrefix"])
    assert folders == {"gs://pets/jobs/pets-1"}


def test_project_and_region_come_from_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of-environment")
    monkeypatch.setenv("GOOGLE_CLOUD_REGION", "europe-west4")
    args = [*NAMED[3:], "--job_name=a", "--dry_run", "--", *TRAINER]
    assert submit.main(args) == 0
    where = "projects/of-environment/locations/europe-west4/"
    assert where in capsys.readouterr().err
    assert submit.main([*args[:3], "--regions=asia-east1", *args[3:]]) == 0
    assert "of-environment/locations/asia-east1/" in capsys.readouterr().err


# Arguments before --, those after (TRAINER where there are none), the line.
REFUSALS = [
    (["--job_name=a b"], None, "job_name must be up to 128 letters, digits"),
    (["--bucket=pets"], None, "bucket must be gs://BUCKET or gs://BUCKET/FOLDER"),
    (["--project=My Project"], None, "project must be the id of a project"),
    (["--regions=us-central1"], None, "give region or regions, got both: us-central1"),
    (["--accelerator_count=2"], None, "accelerator_count=2 needs accelerator_type"),
    (["--num_workers=0"], None, "num_workers must be at least 1, got 0"),
    (["--boot_disk_size_gb=10"], None, "boot_disk_size_gb must be at least 100"),
    (["--env=AIP_MODEL_DIR=x"], None, "env must leave AIP_MODEL_DIR to the service"),
    (["--env=A B=1"], None, "env must be NAME=VALUE with a name of letters"),
    (
        ["--env=A"],
        None,
        "env must be KEY=VALUE,KEY=VALUE, a value without comma, got 'A'",
    ),
    (["--env=A=1,A=2"], None, "env must name each one once, got A twice"),
    (["--labels=Team=x"], None, "labels must be KEY=VALUE of at most 64 lower-case"),
    (["--scheduling=cheap"], None, "scheduling must be one of standard, spot"),
    (["--max_wait_seconds=60"], None, "max_wait_seconds needs scheduling flex_start"),
    (["--scheduling=flex_start"], None, "scheduling flex_start is for GPUs, got none"),
    (
        ["--scheduling=flex_start", L4, "--timeout_seconds=604801"],
        None,
        "timeout_seconds must be at most 604800, 7 days, with flex_start",
    ),
    (
        ["--scheduling=flex_start", L4, "--num_workers=2", "--reduction_servers=1"],
        None,
        "scheduling flex_start needs the same machine in all pools",
    ),
    (["--reduction_servers=1"], None, "reduction_servers add the gradients of several"),
    (
        ["--reduction_servers=1", "--num_workers=2"],
        None,
        "got num_workers=2 with 0 GPUs each",
    ),
    (
        ["--disable_retries", "--restart_job_on_worker_restart"],
        None,
        "disable_retries would override restart_job_on_worker_restart",
    ),
    ([f"--tensorboard={BOARD}"], None, "tensorboard needs service_account"),
    (
        [f"--tensorboard={BOARD}", "--service_account=a@b.com"],
        None,
        (
            "tensorboard must be in the job's region, got one in europe-west4 for a job in "
            "us-central1"
        ),
    ),
    ([f"--kms_key={KEY}"], None, "kms_key must be in the job's region, got one in"),
    (["--kms_key=key"], None, "kms_key must be projects/P/locations/REGION/keyRings"),
    (["--network=inner"], None, "network must be projects/NUMBER/global/networks/NAME"),
    (["--service_account=me"], None, "service_account must be an address"),
    (
        ["--machine_type=ct5lp-hightpu-4t", "--num_workers=2"],
        None,
        "a TPU job must have one worker",
    ),
    (
        ["--machine_type=ct5lp-hightpu-4t", "--tpu_topology=4x4"],
        None,
        "tpu_topology must fit one host",
    ),
    (
        [
            *("--machine_type=cloud-tpu", "--accelerator_type=TPU_V3"),
            "--accelerator_count=32",
        ],
        None,
        "accelerator_count must be 8, the cores of one TPU host",
    ),
    (["--package=dist/a.zip"], None, "package must be an sdist, NAME.tar.gz"),
    (["--package=no.tar.gz"], None, "package must be a file or on gs://"),
    (["--data_dir=gs://b/d"], None, "data_dir is a flag of the trainer: give it after"),
    (["--machine=a"], None, "Unknown command line flag 'machine'"),
    ([], [], "data_dir must be given after --"),
    ([], ["--data_dir=/home/me/tfds"], "data_dir must be on gs://"),
    ([], [*TRAINER, "--job_dir=runs/a"], "job_dir must be on gs://"),
    ([], [*TRAINER, "--job_dir=/gcs/b/run"], "job_dir must be on gs://: what a"),
    ([], [*TRAINER, "--log_dir=/gcs/b/logs"], "log_dir must be on gs://: what a"),
    ([], [*TRAINER, "--epoch=3"], "Unknown command line flag 'epoch'"),
    ([], [*TRAINER, "--epochs=-3"], "epochs must be at least 0, got -3"),
    ([], [*TRAINER, "--flagfile=flags"], "flagfile cannot be ordered"),
    (
        [],
        [*TRAINER, f"--train_split={'a' * 100_000}"],
        "the trainer's flags must be at most 100000 characters, got 1000",
    ),
    ([], ["--help"], "help cannot be ordered; python -m trainer.task --help shows"),
    ([], [*TRAINER, "--undefok=x", "--x=1"], "undefok cannot be ordered"),
    (
        [],
        [*TRAINER, "--encoder_weights=w.weights.h5"],
        "encoder_weights must be imagenet",
    ),
    (["--regions=a-b1,a-b1"], None, "regions must be named once each"),
    (["--num_workers=1e30"], None, "num_workers must be at most 10000"),
    (["--env=a\u00e9=1"], None, "env must be NAME=VALUE with a name of letters"),
    (["--bucket=gs://pets/a*"], None, "bucket must be gs://BUCKET"),
    (["--network=projects/me/global/networks/a"], None, "network must be projects/NUM"),
    ([], [*TRAINER, "--strategy=tpu"], "--strategy=tpu needs a TPU machine"),
    ([], [*TRAINER, "--tpu=local"], "--tpu needs a TPU machine"),
    ([], ["--data_dir=gs://"], "data_dir must be on gs://"),
    (
        [L4],
        [*TRAINER, "--num_cpu_devices=4"],
        "--num_cpu_devices would leave the accelerators idle, got 4",
    ),
    ([], [*TRAINER, "--strategy=multi_worker"], "needs num_workers of 2 or more"),
    (
        ["--num_workers=2"],
        [*TRAINER, "--strategy=mirrored"],
        "2 workers need --strategy=multi_worker or auto, got mirrored",
    ),
    (
        ["--machine_type=ct5lp-hightpu-1t"],
        [*TRAINER, "--strategy=one_device"],
        "a TPU machine needs --strategy=tpu or auto",
    ),
    (
        [L4, "--accelerator_count=4"],
        [*TRAINER, "--strategy=one_device"],
        "--strategy=one_device uses one of the 4 GPUs",
    ),
    (
        ["--num_workers=2"],
        [*TRAINER, "--jit_compile"],
        "--jit_compile works with one replica only, got 2",
    ),
    (
        ["--num_workers=2"],
        [*TRAINER, "--download"],
        "--download is for a single worker, got num_workers=2; leave it out",
    ),
    (["--num_workers=2"], ["--fast_dev_run"], "--fast_dev_run is for a single worker"),
    (
        ["--num_workers=2"],
        [*TRAINER, "--num_cpu_devices=2"],
        "--num_cpu_devices is for a single worker",
    ),
    (
        [],
        [*TRAINER, "--strategy=mirrored"],
        "--strategy=mirrored needs GPUs or --num_cpu_devices, got neither",
    ),
    (
        [L4, "--accelerator_count=2", "--num_workers=2"],
        [*TRAINER, "--global_batch_size=50"],
        "--global_batch_size must be a multiple of the 4 replicas, got 50",
    ),
    (["--machine_type=ct6e-standard-4t"], None, "machine_type must be one of TPU v5e"),
    (
        [f"--tensorboard={BOARD}", "--service_account=a@b.com"],
        [*TRAINER, "--log_dir=gs://pets/logs"],
        "tensorboard shows what is in the job's own folder, got log_dir gs://pets/logs",
    ),
]


@pytest.mark.parametrize("ours, trainers, line", REFUSALS)
def test_an_order_that_breaks_a_rule_is_refused_in_one_line(
    ours, trainers, line, capsys
):
    named = [x for x in NAMED if x.split("=")[0] not in {y.split("=")[0] for y in ours}]
    after = TRAINER if trainers is None else trainers
    code = submit.main([*named, *ours, "--dry_run", "--", *after])
    assert_refused(code, line, capsys)


@pytest.mark.parametrize("missing", range(len(NAMED)))
def test_what_the_service_must_know_is_asked_for(missing, capsys):
    name = NAMED[missing].split("=")[0].removeprefix("--")
    named = NAMED[:missing] + NAMED[missing + 1 :]
    code = submit.main([*named, "--dry_run", "--", *TRAINER])
    assert_refused(code, f"{name} must be given", capsys)


def test_a_region_in_the_middle_is_checked_before_the_first_is_asked(capsys):
    named = [one for one in NAMED if not one.startswith("--region")]
    board = f"--tensorboard={BOARD}"
    order = [board, "--service_account=a@b.com", "--regions=europe-west4,asia-east1"]
    code = submit.main([*named, *order, "--", *TRAINER])
    assert_refused(code, "tensorboard must be in the job's region", capsys)


TUNING_REFUSALS = [
    ([], None, "a search needs search or search_space, one of them"),
    (["--search=rate=0..1"], None, "search must name settings of the trainer"),
    (["--search=learning_rate"], None, "search must be NAME=LOW..HIGH or NAME=A/B/C"),
    (["--search=learning_rate=a..1"], None, "must have numbers, got 'a'"),
    (["--search=learning_rate=1..0.1"], None, "must have min below max, got 1 and 0.1"),
    (["--search=learning_rate=0..1:log"], None, "min above 0 on a log scale, got 0"),
    (["--search=learning_rate=0.1..1:cube"], None, "must have a scale of linear, log"),
    (["--search=learning_rate=0.1"], None, "must have two values or more, got 0.1"),
    (["--search=seed=1/1"], None, "must name each value once"),
    (["--search=batch_size=1.5..3"], None, "must be between whole numbers"),
    (["--search=optimizer=1..3"], None, "must be a list of values: it is no number"),
    (
        ["--search=optimizer=adam/sgd"],
        None,
        (
            "the search holds a trial that would be refused, --optimizer=sgd: optimizer "
            "must be one of adam, adamw"
        ),
    ),
    (["--search=job_dir=a/b"], None, "search must leave job_dir alone"),
    (["--search=epochs=1..9"], None, "search has epochs, which is also given after --"),
    ([SEARCH, "--trials=2", "--parallel_trials=3"], None, "parallel_trials must be at"),
    ([SEARCH, "--max_failed_trials=11"], None, "max_failed_trials must be at most"),
    ([SEARCH, "--max_failed_trials=0"], None, "max_failed_trials must be at least 1"),
    ([SEARCH, "--algorithm=grid"], None, "algorithm grid needs whole numbers or lists"),
    ([SEARCH, "--metric=accuracy"], None, "hp_metric must be a metric of validation"),
    ([SEARCH, "--metric=val_miou"], None, "hp_metric must be a metric of validation"),
    (
        [SEARCH, "--metric=val_mean_iou"],
        [*TRAINER, "--hp_metric=val_loss"],
        "metric must be the trainer's hp_metric, got val_mean_iou and val_loss",
    ),
    (
        [SEARCH],
        [*TRAINER, "--job_dir=gs://b/c"],
        "job_dir must be left out of a search",
    ),
    (
        [SEARCH, "--machine_type=ct5lp-hightpu-1t"],
        None,
        "a tuning job cannot run on TPUs",
    ),
    (
        ["--search=image_size=64..128"],
        None,
        "--image_size=65: image_size must be a mul",
    ),
    (["--search=learning_rate=1e-4...1e-2"], None, "must have numbers, got '1e-4...1"),
    (["--search=fast_dev_run=true/false"], None, "fast_dev_run writes to no trial's"),
    (["--search=init_from=a/b"], None, "init_from must be on gs://, for a container"),
    (
        ["--search=strategy=mirrored/one_device", "--num_workers=4"],
        None,
        "4 workers need --strategy=multi_worker or auto",
    ),
    (
        ["--search=seed=0..2147483647", "--algorithm=grid"],
        None,
        "algorithm grid must have at most 100000 points, got 2147483648",
    ),
    (["--search_space=no.yaml"], None, "search_space must be a file that can be read"),
]


@pytest.mark.parametrize("ours, trainers, line", TUNING_REFUSALS)
def test_a_search_that_breaks_a_rule_is_refused_in_one_line(
    ours, trainers, line, capsys
):
    after = TRAINER if trainers is None else trainers
    code = tune.main([*NAMED, *ours, "--dry_run", "--", *after])
    assert_refused(code, line, capsys)


@pytest.mark.parametrize(
    "main, kinds",
    [
        (submit.main, (Order, Sending, Asking)),
        (tune.main, (Order, Search, Sending, Asking)),
        (local.main, (Order, Search, local.Here)),
        (jobs.main, (jobs.Looking, Asking)),
    ],
)
def test_help_shows_every_flag(main, kinds, capsys):
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    shown = re.findall(r"^  --(\w+)", out, re.MULTILINE)
    assert shown == [field.name for kind in kinds for field in dataclasses.fields(kind)]
    assert err == ""


def test_one_trial_runs_by_itself(capsys):
    args = [*NAMED, SEARCH, "--trials=1", "--dry_run", "--", *TRAINER]
    assert tune.main(args) == 0
    request = json.loads(capsys.readouterr().out)
    counts = ("maxTrialCount", "parallelTrialCount", "maxFailedTrialCount")
    assert [request[name] for name in counts] == [1, 1, 1]


def assert_refused(code: int, line: str, capsys: pytest.CaptureFixture) -> None:
    """Asserts that a command ended with the code of a refusal, and one line."""
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    [said] = err.splitlines()
    assert said.startswith("segtrainer: ")
    assert re.search(re.escape(line), said), said
