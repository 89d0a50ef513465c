# make demo: set up, pretrain on embedded images, evaluate.   make test: set up, run the tests.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint
demo: $(STAMP)
	$(BIN)/unlabeled pretrain demo/simclrv2

# one thread per process: two busy processes on two cores, and sums in the same order everywhere
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[cpu,dev]"
	touch $@
