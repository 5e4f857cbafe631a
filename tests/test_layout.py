"""The rules of the house: who imports whom, what an import does, what is declared."""

import ast
import dataclasses
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

import trainer
from deploy import jobs, local, order
from trainer.config import Config
from trainer.evaluation import Evaluation
from trainer.export import Export
from trainer.predict import Prediction
from trainer.preparation import Preparation

FOLDER = pathlib.Path(trainer.__file__).parent
TREES = {
    path.stem: ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.py"))
}
MODULES = set(TREES) - {"__init__"}

# What each module of ours may import of ours: from the entry point at the top to the
# leaves, which each can be used alone in a notebook. A new room gets its line here.
LEAVES = {
    *(
        "augment",
        "charts",
        "clock",
        "cluster",
        "flags",
        "encoders",
        "examples",
        "files",
        "objective",
        "pictures",
    ),
    *("defects", "masks", "terminal"),
    *("bucket", "interruption", "lease", "metrics", "order", "resizing", "saver"),
    "averaging",
    "boundaries",
    "overlay",
    "sums",
}
COMMANDS = {"evaluate", "export", "predict", "prepare"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "task": {
        *(
            "cluster",
            "command",
            "config",
            "distribution",
            "flags",
            "interruption",
            "job",
        ),
        *("places", "telling", "terminal", "train"),
    },
    "telling": {"job", "metrics", "order", "page"},
    "config": {"encoders", "flags", "objective", "recipes"},
    "recipes": {"flags"},
    "losses": {"sums"},
    "balance": {"feed", "job", "objective", "streams"},
    "lease_gcs": {"bucket", "lease"},
    "train": MODULES - {"task", "train"},
    "ending": {
        *("checkpoint", "checkpoint_folder", "clock", "exporting", "files"),
        *("gallery", "interruption"),
        *("job", "judge", "objective", "page", "run_files", "standing"),
        *("terminal", "trained"),
    },
    "saving": {"checkpoint", "checkpoint_folder", "job", "standing"},
    "standing": {"job"},
    "places": {
        *("bucket", "checkpoint_folder", "config", "dataset", "files", "lease"),
        "lease_gcs",
        *("placing", "run_files", "trained"),
    },
    "judge": {
        "dataset",
        "evaluation_step",
        "feed",
        "gallery",
        "job",
        "objective",
        "pictures",
        "report",
        "streams",
    },
    "page": {"charts", "colophon", "gallery", "tables"},
    "colophon": {"config", "tables"},
    "gallery": {"metrics", "overlay", "pictures", "tables"},
    "tables": {"metrics", "pictures"},
    "feed": {"data", "dataset", "job", "records", "streams"},
    "job": {
        *("averaging", "checkpoint", "checkpoint_folder", "cluster", "config", "data"),
        "dataset",
        *("distribution", "examples", "files", "metrics", "model", "objective"),
        *("run_files", "same_run", "step", "trained"),
    },
    **{name: MODULES - {"task", "train", name} for name in COMMANDS},
    "same_run": {
        *("checkpoint", "checkpoint_folder", "config", "distribution", "files"),
        "run_files",
    },
    "checkpoint_folder": {"checkpoint", "files"},
    "checkpoint": {"averaging", "files"},
    "data": {"augment", "dataset", "examples", "order"},
    "streams": {"augment", "data", "dataset", "examples", "loading", "records"},
    "loading": {"dataset", "examples", "records"},
    "records": {"dataset", "examples", "resizing"},
    "inference": {"resizing"},
    "evaluation": {"flags"},
    "scoring": {
        *("boundaries", "data", "dataset", "examples", "inference", "metrics"),
        *("photographs", "pipeline", "records", "resizing"),
    },
    "worst": {"metrics", "pictures", "resizing", "scoring"},
    "index": {"files"},
    "photographs": {"files", "folders", "index"},
    "decoding": {"masks", "terminal"},
    "pipeline": {"decoding", "inference", "photographs", "resizing", "terminal"},
    "trained": {
        *("checkpoint", "checkpoint_folder", "config", "dataset", "files", "model"),
        "run_files",
    },
    "serving": {"decoding", "inference", "resizing"},
    "litert": {"inference", "terminal"},
    "placing": {"files"},
    "contract": {
        *("config", "files", "pictures", "placing", "run_files", "serving"),
        "trained",
    },
    "exporting": {
        *("checkpoint", "config", "contract", "files", "litert", "placing", "serving"),
        "trained",
    },
    "model": {"decoders", "encoders", "folding", "pretrained"},
    "decoders": {"batch_norm", "up_conv"},
    "folding": {"batch_norm", "sums"},
    "batch_norm": {"sums"},
    "up_conv": {"sums"},
    "pretrained": {"encoders", "files"},
    "distribution": {"cluster", "sums"},
    "report": {"events", "files", "pictures", "run_files"},
    "run_files": {"files"},
    "events": {"files"},
    "shards": {"files"},
    "folders": {"defects"},
    "splits": {"defects", "folders"},
    "layouts": {"defects", "folders", "splits"},
    "preparation": {"config", "flags", "layouts"},
    "examine": {
        *("checks", "config", "defects", "folders", "layouts", "masks", "preparation"),
        "splits",
    },
    "pack": {
        *("checks", "dataset", "examine", "masks", "preparation", "shards", "splits"),
    },
    "dataset": {"terminal"},
    "fetch": {"dataset", "files", "shards"},
    "checks": {"defects", "folders", "masks"},
    "step": {"averaging", "losses", "sums"},
    "evaluation_step": {"losses", "metrics"},
    "command": {"flags", "terminal"},
    **{name: set() for name in LEAVES},
}

# The same of deploy, where a job is ordered: nothing of TensorFlow, of the trainer its
# settings only.
DEPLOY = {
    path.stem: ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((FOLDER.parent / "deploy").glob("*.py"))
}
SENDS = {"command", "order", "sending", "service", "spec"}
DEPLOY_MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "order": set(),
    "command": {"order"},
    "rules": {"order"},
    "space": {"order"},
    "study": {"order", "space"},
    "spec": {"order", "rules", "space", "study"},
    "trials": {"space"},
    "errors": {"command"},
    "service": {"errors"},
    "storage": {"command", "errors", "order", "spec"},
    "sending": SENDS - {"sending"} | {"errors", "storage"},
    "submit": SENDS,
    "tune": SENDS | {"trials"},
    "jobs": {"command", "errors", "order", "sending", "service", "trials"},
    "replicas": {"order", "spec"},
    "restarts": {"replicas"},
    "side_by_side": {"restarts"},
    "local_search": {
        *("command", "order", "replicas", "restarts", "side_by_side", "space"),
        *("study", "trials"),
    },
    "local": {
        *("command", "local_search", "order", "replicas", "restarts", "rules"),
        *("side_by_side", "study"),
    },
}

# Needed at run time, but by a library of ours, which does not declare it.
IMPORTED_BY_LIBRARIES = {"importlib-resources", "tensorboard"}


def imported_names(tree: ast.AST) -> set[str]:
    """Returns the full names of all that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(tree: ast.AST) -> set[str]:
    """Returns which modules of ours a module imports."""
    parts = [name.split(".") for name in imported_names(tree)]
    ours = {part[1] for part in parts if part[0] == "trainer" and len(part) > 1}
    return ours & MODULES


@pytest.mark.parametrize("module", sorted(TREES))
def test_module_imports_only_what_lies_below_it(module):
    assert module in MAY_IMPORT, f"give trainer/{module}.py a line in MAY_IMPORT"
    assert imported_modules(TREES[module]) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", sorted(DEPLOY))
def test_a_module_of_deploy_imports_only_what_lies_below_it(module):
    assert module in DEPLOY_MAY_IMPORT, f"give deploy/{module}.py a line"
    parts = [name.split(".") for name in imported_names(DEPLOY[module])]
    of_deploy = {part[1] for part in parts if part[0] == "deploy"}
    assert of_deploy <= DEPLOY_MAY_IMPORT[module]
    of_trainer = {part[1] for part in parts if part[0] == "trainer"}
    assert of_trainer <= {"config", "flags"}
    assert not {part[0] for part in parts} & {"tensorflow", "keras"}


def test_importing_all_of_deploy_imports_neither_tensorflow_nor_the_sdk():
    names = ", ".join(f"deploy.{name}" for name in DEPLOY if name != "__init__")
    code = (
        f"import sys, {names}; print([name for name in ('tensorflow', 'keras', 'numpy',"
        "'google.cloud.aiplatform_v1', 'optuna', 'yaml') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_no_modules_import_each_other_in_a_circle():
    below = {module: imported_modules(tree) for module, tree in TREES.items()}
    while leaves := {module for module, others in below.items() if not others}:
        below = {m: others - leaves for m, others in below.items() if m not in leaves}
    assert not below


@pytest.mark.parametrize(
    "name, tree",
    [
        *((f"trainer/{name}.py", tree) for name, tree in TREES.items()),
        *((f"deploy/{name}.py", tree) for name, tree in DEPLOY.items()),
    ],
)
def test_importing_a_module_does_nothing_but_define(name, tree):
    defining = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
    )
    for index, node in enumerate(tree.body):
        is_docstring = index == 0 and isinstance(node, ast.Expr)
        is_start = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "__name__ == '__main__'",
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        )
        assert isinstance(node, defining) or is_docstring or is_start, (
            f"{name} line {node.lineno}: {ast.unparse(node)[:60]}"
        )


@pytest.mark.parametrize(
    "module", ["flags", "config", "task", "export", "predict", "prepare"]
)
def test_settings_are_checked_before_tensorflow_is_imported(module):
    code = (
        f"import sys, trainer.{module}; "
        "print({'tensorflow', 'keras', 'tensorflow_datasets'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


def test_every_setting_is_used():
    # In Config itself they are only checked: there they are attributes of `self`.
    read = {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value).split(".")[-1] == "settings"
    }
    kinds = (Config, Evaluation, Export, Prediction, Preparation)
    settings = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert settings, "Config has no settings"
    assert settings - read == set()


@pytest.mark.parametrize(
    "kind",
    [order.Order, order.Search, order.Sending, order.Asking, local.Here, jobs.Looking],
)
def test_every_setting_of_an_order_is_used(kind):
    read = {
        node.attr
        for tree in DEPLOY.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value)
        in ("order", "search", "sending", "asking", "how", "here")
    }
    assert {field.name for field in dataclasses.fields(kind)} - read == set()


def required(extra: str | None) -> set[str]:
    """Returns the distributions that segtrainer requires, the core or one extra."""
    names = set()
    for line in importlib.metadata.requires("segtrainer") or []:
        requirement, _, marker = line.partition(";")
        of_extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if (of_extra.group(1) if of_extra else None) == extra:
            match = re.match(r"[\w.-]+", requirement)
            assert match is not None
            names.add(re.sub(r"[-_.]+", "-", match.group()).lower())
    return names


def test_the_core_requires_what_the_package_imports_and_nothing_else():
    names = set().union(*map(imported_names, TREES.values()))
    tops = {name.split(".")[0] for name in names}
    third_party = tops - set(sys.stdlib_module_names) - {"trainer", "tensorflow"}
    owners = importlib.metadata.packages_distributions()
    imported = {
        re.sub(r"[-_.]+", "-", owner).lower()
        for top in third_party
        for owner in owners[top][:1]
        if top != "google"  # Many share the name; this one brings the others.
    } | {"google-cloud-storage"}
    assert imported | IMPORTED_BY_LIBRARIES == required(None)


def test_tensorflow_comes_with_an_extra_only():
    of_core = {name for name in required(None) if name.startswith("tensorflow")}
    assert of_core == {"tensorflow-datasets"}
    assert required("cpu") == {"tensorflow-cpu"}
    assert required("gpu") == {"tensorflow"}
    assert required("tpu") == {"tensorflow-tpu", "libtpu"}


@pytest.mark.parametrize(
    "name",
    [
        "requirements.lock",
        "requirements-gcs.lock",
        "requirements-deploy.lock",
        "requirements-tpu.lock",
        "requirements-torch.lock",
        "requirements-image-cpu.lock",
        "requirements-image-gpu.lock",
        "requirements-image-tpu.lock",
    ],
)
def test_the_lock_file_names_no_registry_and_no_path(name):
    lock = FOLDER.parent / name
    for line in lock.read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(
            r"([a-z0-9._-]+==\S+|    --hash=sha256:[0-9a-f]{64})( \\)?|\s*#[^/]*|",
            line,
        ), f"neither a pinned package, a digest nor a comment: {line}"
