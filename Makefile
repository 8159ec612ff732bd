# Set-up and the main jobs, all in .venv. `make demo` is the first thing to try; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter the ROS wheels exist for; `make PYTHON=/path/to/python3.12 demo` overrides.
SUITABLE := import sys, platform; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 12) \
	and sys.platform == "linux" and platform.machine() == "x86_64"))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c '$(SUITABLE)' 2>/dev/null && { echo $$p; exit; }; done; echo python3)

.PHONY: help demo test test-all bench bench-localization train lint clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | column -t -s:

$(BIN)/python:
	@$(PYTHON) -c '$(SUITABLE)' || { printf '%s\n' \
	  "avssl_ros sets itself up with the ROS 2 wheels of PyPI, which exist for Python 3.10 to 3.12 on x86-64 Linux only." \
	  "Got: $$($(PYTHON) -c 'import sys, platform; print("Python", sys.version.split()[0], "on", sys.platform, platform.machine())' \
	    2>&1 || true) (from '$(PYTHON)')." \
	  "Name another interpreter: make PYTHON=/path/to/python3.12 demo. With a ROS 2 installation use colcon build (README)." >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: pip runs again only when the metadata changed.
$(VENV)/.demo-ready: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ros]'
	touch $@

$(VENV)/.test-ready: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ros,train,dev]'
	touch $@ $(VENV)/.demo-ready

demo: $(VENV)/.demo-ready  ## a real 360 degree scene through the real node; results in demo/out (no ROS, no torch needed)
	$(BIN)/avssl demo

# Two processes: training's tests fork data loader workers, which hang now and then where DDS and ONNX Runtime have threads.
test: $(VENV)/.test-ready  ## every test of less than a minute that has no known fault
	$(BIN)/python -m pytest -m 'not slow and not unreliable' --ignore tests/training
	$(BIN)/python -m pytest -m 'not slow and not unreliable' tests/training

test-all: $(VENV)/.test-ready  ## every test
	$(BIN)/python -m pytest --ignore tests/training
	$(BIN)/python -m pytest tests/training

bench-localization: $(VENV)/.test-ready  ## localization on generated scenes against chance and audio-free priors
	$(BIN)/python benchmarks/localization.py --json benchmarks/out/localization.json

bench: bench-localization  ## every claimed figure

train: $(VENV)/.test-ready  ## retrain the shipped models (see training/train.py --help)
	$(BIN)/python training/train.py

lint: $(VENV)/.test-ready  ## ruff
	$(BIN)/ruff check .

clean:  ## remove what was built; .venv stays
	rm -rf build install log demo/out benchmarks/out *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
