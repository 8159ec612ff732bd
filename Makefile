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

.PHONY: help demo test test-all faults soak fuzz bench bench-localization bench-objectives bench-streams bench-sizes bench-views bench-latency bench-pipeline bench-noise bench-places train train-small tune lint clean

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

# In a shell that sourced ROS, its rclpy and its libraries would be taken before those of .venv. The last one says that
# the wheels' libraries are on LD_LIBRARY_PATH already.
WITHOUT_ROS := env -u PYTHONPATH -u LD_LIBRARY_PATH -u AMENT_PREFIX_PATH -u RMW_IMPLEMENTATION \
	-u _ROS_WHEELS_BOOTSTRAP_COMPLETE

# Stamps: pip runs again only when the metadata changed.
$(VENV)/.demo-ready: pyproject.toml setup.py | $(BIN)/python
	$(WITHOUT_ROS) $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ros]'
	touch $@

$(VENV)/.test-ready: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(WITHOUT_ROS) $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ros,train,dev]'
	touch $@ $(VENV)/.demo-ready

demo: $(VENV)/.demo-ready  ## a real 360 degree scene through the real node; results in demo/out (no ROS, no torch needed)
	$(WITHOUT_ROS) $(BIN)/avssl demo

# Three processes: training's tests fork data loader workers, which hang now and then where DDS and ONNX Runtime have
# threads. Most tests wait more than they compute, so training's run beside them and give way; the quicker faults and
# some others come after those, so that both sides take as long. Their output comes at the end. Training's have one
# thread: those of OpenMP and OpenBLAS wait for each other by spinning, which took some tests 28 times as long.
AFTER_TRAINING := tests/fuzz tests/test_packaging.py tests/test_bench_latency.py
define run_tests
@log=$(VENV)/other-tests.log; \
{ status=0; OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 nice -n 15 $(BIN)/python -m pytest $(1) tests/training || status=1; \
  $(BIN)/python -m pytest $(1) tests/faults/test_faults_of_*.py $(AFTER_TRAINING) || status=1; exit $$status; } > $$log 2>&1 & \
others=$$!; status=0; \
$(BIN)/python -m pytest $(1) --ignore tests/training --ignore-glob '*/test_faults_of_*' $(AFTER_TRAINING:%=--ignore %) || status=1; \
wait $$others || status=1; cat $$log; exit $$status
endef

test: $(VENV)/.test-ready  ## every test of less than a minute, and three minutes of soak
	$(call run_tests,-m 'not slow')

test-all: $(VENV)/.test-ready  ## every test
	$(call run_tests,)

# The table is written only where every fault went well.
faults: $(VENV)/.test-ready  ## every fault of camera, microphone, clock and process for real; writes docs/faults.md
	AVSSL_FAULTS_TABLE=docs/faults.md $(BIN)/python -m pytest tests/faults

soak: $(VENV)/.test-ready  ## the real node for an hour with a fault every 20 s (see benchmarks/soak.py)
	$(BIN)/python benchmarks/soak.py --minutes 60

bench-localization: $(VENV)/.test-ready  ## localization on generated scenes against chance and audio-free priors
	$(BIN)/python benchmarks/localization.py --json benchmarks/out/localization.json --figures benchmarks/out

bench-objectives: $(VENV)/.test-ready  ## other training objectives, parts left out, less data: trains all of them (hours)
	$(BIN)/python benchmarks/objectives.py --json benchmarks/out/objectives.json --figure benchmarks/out/learning.png

bench-streams: $(VENV)/.test-ready  ## when sources start and stop, on generated timelines
	$(BIN)/python benchmarks/streams.py --json benchmarks/out/streams.json

bench-sizes: $(VENV)/.test-ready  ## what smaller views find, and what a step then takes beside other systems' networks
	$(BIN)/python benchmarks/view_sizes.py --json benchmarks/out/view_sizes.json

bench-views: $(VENV)/.test-ready  ## all views of every image or some in turn: cost, and what is lost where things move
	$(BIN)/python benchmarks/views_in_turn.py --json benchmarks/out/views_in_turn.json

bench-latency: $(VENV)/.test-ready  ## one step beside other networks, by stages, and how its cost grows
	$(BIN)/python benchmarks/latency.py --json benchmarks/out/latency.json --plot benchmarks/out/latency.png

bench-pipeline: $(VENV)/.test-ready  ## packing and caching of clips beside other ways
	$(BIN)/python benchmarks/data_pipeline.py --json benchmarks/out/data_pipeline.json

bench-noise: $(VENV)/.test-ready  ## fans, motors and rooms: false sources, and speech above them, with a noise profile and without
	$(BIN)/python benchmarks/self_noise.py --json benchmarks/out/self_noise.json

bench-places: $(VENV)/.test-ready  ## adapting to places never seen, from unlabelled recordings of them (three quarters of an hour)
	$(BIN)/python benchmarks/places.py --json benchmarks/out/places.json

bench: bench-localization bench-streams bench-sizes bench-views bench-latency bench-pipeline bench-noise bench-places  ## every claimed figure

train: $(VENV)/.test-ready  ## retrain the shipped models (see training/train.py --help)
	$(BIN)/python training/train.py

# The whole way from material to a model on a robot. The full run takes about an hour on 2 cores; a smoke run (SMOKE=1)
# takes minutes and only tries the way: its model has learned next to nothing.
SMALL := runs/$(if $(SMOKE),smoke,small)
WEIGHTS ?= ../shared/weights
SMALL_CLIPS := --data None --clips.shards $(SMALL)/shards
SMALL_SCENES := --least-photos 1 --least-sounds 1 --visible 3 --scenes $(if $(SMOKE),24,100)

train-small: $(VENV)/.test-ready  ## corpus, prepare, pack, train, export, quantize, calibrate, evaluate, localize (SMOKE=1: in minutes)
	$(BIN)/python training/corpus.py --output $(SMALL)/corpus --clips $(if $(SMOKE),120,1200)
	$(BIN)/python training/prepare.py --collected $(SMALL)/corpus/collected.csv --output $(SMALL)/prepared
	$(BIN)/python training/pack.py pack --prepared $(SMALL)/prepared --output $(SMALL)/shards
	$(BIN)/python training/train.py --run $(SMALL)/run --weights $(WEIGHTS) $(SMALL_CLIPS) \
	  $(if $(SMOKE),--steps 60 --align-steps 20 --scenes 4 --validation-scenes 12,--steps 2000)
	$(BIN)/python training/export.py --run $(SMALL)/run --output $(SMALL)/models
	$(BIN)/python training/quantize.py --models $(SMALL)/models $(SMALL_CLIPS) $(SMALL_SCENES)
	$(BIN)/python training/calibrate.py --models $(SMALL)/models $(SMALL_CLIPS) $(SMALL_SCENES)
	$(BIN)/python training/evaluate.py --models $(SMALL)/models $(SMALL_CLIPS) $(SMALL_SCENES) --json $(SMALL)/figures.json
	$(BIN)/avssl localize demo/scene.mp4 --models $(SMALL)/models --output $(SMALL)/localized

MINUTES ?= 20

tune: $(VENV)/.test-ready  ## search for a better training configuration; again goes on (MINUTES=20, see training/tune.py)
	$(BIN)/python training/tune.py --minutes $(MINUTES)

fuzz: $(VENV)/.test-ready  ## 100,000 mutated inputs to every place where data come in (a quarter of an hour)
	$(BIN)/python -m pytest -q -m slow --show-capture=no tests/fuzz

lint: $(VENV)/.test-ready  ## ruff
	$(BIN)/ruff check .

clean:  ## remove what was built; .venv stays
	rm -rf build install log demo/out benchmarks/out *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
