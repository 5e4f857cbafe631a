# Every habit is one command. Each does its own set-up, so a fresh clone needs nothing
# but Python 3.11 to 3.13 and make.

SUITABLE = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c "$(SUITABLE)" 2>/dev/null && echo $$python && break; done)
BIN = .venv/bin
# The sample is small: more steps with fewer examples each.
SAMPLE_FLAGS = --job_dir=runs/sample --batch_size=16 --total_steps=240 --eval_every_steps=60
# What the benchmarks read: photographs of full size with their trimaps, in folders
# images and masks; the data set of benchmarks.scale_dataset.
FOLDER ?= photographs
DATA_DIR ?= tfds
IMAGE ?= segtrainer
VARIANT ?= cpu
# docker where its engine runs, else buildah, which needs none.
BUILDER ?= $(shell docker info >/dev/null 2>&1 && echo docker || echo buildah)
# Twice quiet: one line of ours says what happens, errors still show.
# Not compiled: Python does that itself, of the few files that are ever imported. Where it
# is told not to, each start of a process would compile TensorFlow anew, in 6 seconds.
unexport PYTHONDONTWRITEBYTECODE
PIP = -m pip --disable-pip-version-check --no-input install -qq --no-compile
DIGESTS = --require-hashes
LOCK = $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe \
	--no-header --no-emit-options --no-emit-index-url --no-emit-find-links \
	--no-emit-trusted-host $(LOCK_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help install train test check bench format image lock clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: .venv/installed .venv-gcs/locked .venv-deploy/locked  ## Make the environments from the lock files, once

train: .venv/installed  ## Train on the bundled sample; more flags: make train TRAIN_FLAGS="..."
	@$(BIN)/python -m trainer.task $(SAMPLE_FLAGS) $(TRAIN_FLAGS)

test: install  ## Run every test, 20 to 40 minutes; one of them: make test TESTS="-k name"
	@$(BIN)/python -m pytest $(or $(TESTS),--numprocesses=2 --dist=loadfile --no-loadscope-reorder)

check: install  ## Check format, lint, types and the Dockerfile
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/hadolint Dockerfile

bench: install .venv-torch/locked  ## Measure speed and quality: make bench FOLDER=PHOTOGRAPHS DATA_DIR=TFDS
	@$(BIN)/python -m benchmarks.step
	@$(BIN)/python -m benchmarks.input --folder=$(FOLDER)
	@$(BIN)/python -m benchmarks.start --data_dir=$(DATA_DIR)
	@$(BIN)/python -m benchmarks.quality --data_dir=$(DATA_DIR)
	@$(BIN)/python -m benchmarks.growth

format: install  ## Format the code, mend what lint can mend
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

image: export BUILDAH_ISOLATION ?= chroot
image: export BUILDAH_LAYERS ?= true
image:  ## Build the container image; more: make image VARIANT=gpu IMAGE=NAME:TAG
	@$(BUILDER) build --platform=linux/amd64 --build-arg VARIANT=$(VARIANT) \
		$(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
		$(IMAGE_FLAGS) --tag $(IMAGE) .

lock: install  ## Remake the lock files; newest versions: make lock LOCK_FLAGS=--upgrade
	@echo "Resolving versions, about 4 minutes ..."
	@$(LOCK) --extra cpu --extra dev --extra local \
		--output-file requirements.lock setup.py
	@$(LOCK) --extra cpu -c requirements.lock \
		--output-file requirements-image-cpu.lock setup.py
	@$(LOCK) --extra gpu -c requirements.lock \
		--output-file requirements-image-gpu.lock setup.py
	@$(LOCK) --extra tpu --output-file requirements-image-tpu.lock setup.py
	@$(LOCK) --output-file requirements-gcs.lock requirements-gcs.in
	@$(LOCK) --output-file requirements-deploy.lock requirements-deploy.in
	@$(LOCK) --output-file requirements-tpu.lock requirements-tpu.in
	@$(filter-out --generate-hashes,$(LOCK)) \
		--output-file requirements-torch.lock requirements-torch.in
	@sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements-torch.lock
	@grep -c == requirements*.lock

clean:  ## Remove the environments and the caches; runs are kept
	rm -rf .venv .venv-gcs .venv-deploy .venv-tpu .venv-torch \
		.mypy_cache .pytest_cache .ruff_cache *.egg-info

# Two stamps: a changed lock makes the environment anew, so that nothing of the old one
# is left behind; changed metadata only installs our own package again. setuptools warns
# at length of every editable install; it is the one of the lock file.
.venv/locked: requirements.lock
.venv-gcs/locked: requirements-gcs.lock
.venv-deploy/locked: requirements-deploy.lock
# More than a gigabyte for one benchmark each: `make install` leaves them out.
.venv-tpu/locked: requirements-tpu.lock
.venv-torch/locked: requirements-torch.lock
# Without digests: a version of PyTorch has many builds, for CPUs alone and for each GPU's
# libraries, and any of them will do here.
.venv-torch/locked: DIGESTS =
.venv/locked .venv-gcs/locked .venv-deploy/locked .venv-tpu/locked .venv-torch/locked:
	@test -n "$(PYTHON)" || \
		{ echo "No Python 3.11 to 3.13 found; name one: make install PYTHON=..."; exit 1; }
	@echo "Making $(@D) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv --clear $(@D)
	@echo "Installing $$(grep -c == $<) packages from $<, about a minute ..."
	@$(@D)/bin/python $(PIP) $(DIGESTS) --use-pep517 --requirement $<
	@touch $@

.venv/installed: .venv/locked setup.py pyproject.toml
	@echo "Installing segtrainer itself ..."
	@PYTHONWARNINGS=ignore $(BIN)/python $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
