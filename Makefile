# One virtual environment serves all: a second call finds it ready.
#   make demo    a synthetic camera and the segmentation node over real DDS, 20 s -> demo_output/
#   make test    unit and system tests        make lint    ruff and import-linter
#   make bench   -> bench_output/*.json       make clean   what make made
# PYTHON=python3.12 chooses the interpreter, VENV=path the environment; a sourced ROS has its own.
SHELL := /bin/bash
PYTHON ?= python3
# Docker images of ROS set ROS_DISTRO without sourcing anything.
ROS := $(if $(AMENT_PREFIX_PATH),$(ROS_DISTRO))
VENV ?= .venv$(if $(ROS),-$(ROS))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
METADATA := setup.py setup.cfg pyproject.toml constraints.txt

ifneq ($(ROS),)
# A sourced ROS brings rclpy, compiled for the system's Python and NumPy: stay with that NumPy.
EXTRAS_DEMO :=
EXTRAS_TEST := [train,test,dev]
PINS = "$$($(PYTHON) -c 'import numpy; n = int(numpy.__version__.split(".")[0]); \
       print(f"numpy>={n},<{n + 1}")')"
else
EXTRAS_DEMO := [ros-wheels]
EXTRAS_TEST := [ros-wheels,train,test,dev]
PINS = -c constraints.txt
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help:
	@sed -n '2,6s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.ready-demo
	$(BIN)/rgbd-fusion-seg demo

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest

lint: $(VENV)/.ready-test
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: $(VENV)/.ready-test
	@set -e; for script in benchmarks/bench_*.py; do echo "$$script"; $(BIN)/python "$$script"; done

clean:
	rm -rf $(VENV) build *.egg-info demo_output bench_output .pytest_cache .ruff_cache .import_linter_cache \
	       .hypothesis
	find rgbd_fusion_seg test benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-demo: $(BIN)/python $(METADATA)
	@echo 'Installing into $(VENV): about a minute, once.'
	$(PIP) install --quiet $(PINS) -e '.$(EXTRAS_DEMO)'
	@touch $@

$(VENV)/.ready-test: $(BIN)/python $(METADATA)
	@echo 'Installing into $(VENV), with the tools of training and tests: some minutes, once.'
	$(PIP) install --quiet $(PINS) -e '.$(EXTRAS_TEST)'
	@touch $@ $(VENV)/.ready-demo
