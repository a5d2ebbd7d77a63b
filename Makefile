# Every target sets itself up: a virtual environment in .venv, at the versions of requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-shared lint graph bench bench-methods bench-search bench-live record gtsrb joint lock clean

demo: $(READY)  ## run the main job on real images, in two to three minutes
	$(BIN)/prunetune demo

test: $(READY) lint  ## the default tests, minutes on two cores
	$(BIN)/pytest --numprocesses 2 --dist loadfile --durations 15

test-slow: $(READY)  ## what takes longer: twenty kills of one driver
	$(BIN)/pytest -m slow

test-shared: $(READY)  ## what needs the data and weights beside the checkout
	$(BIN)/pytest -m shared

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

graph:  ## which files and folders import which, here or in the checkout of `make graph AT=path`
	$(PYTHON) -m tests.import_graph $(AT)

bench: $(READY)  ## all benchmarks, or those of `make bench ONLY="overhead …"`
	$(BIN)/python -m tests.benchmarks $(ONLY)

bench-methods: $(READY)  ## every way to transfer on the same axes, about half an hour
	$(BIN)/python -m tests.benchmarks methods

bench-search: $(READY)  ## searches replayed over recorded curves, hours; WITH="--seeds 3 …" for some
	$(BIN)/python -m tests.benchmarks.search.bench $(WITH)

bench-live: $(READY)  ## whole sweeps with real training, hours; WITH="--tasks gtsrb …" for some
	$(BIN)/python -m tests.benchmarks.live $(WITH)

record: $(READY)  ## learning curves for bench-search, nine hours of one core at low priority; resumes
	$(BIN)/python -m tests.benchmarks.record $(WITH)

gtsrb: $(READY)  ## the README's sweep on traffic signs, about twenty minutes
	$(BIN)/prunetune sweep tests/benchmarks/gtsrb.yaml

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prunetune needs Python 3.11 or newer; set PYTHON=/path/to/one.")'
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=requirements.lock $(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

joint: $(READY)  ## a sweep in which methods compete, six minutes
	$(BIN)/prunetune sweep tests/benchmarks/joint.yaml

lock: $(READY)  ## write requirements.lock anew from what is installed, versions only
	$(BIN)/pip freeze --exclude-editable > requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
