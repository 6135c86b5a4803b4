# `make test` on a machine with Python 3.10 to 3.12: builds .venv, then checks format, lint, types and tests.
# `make test-fast` leaves out the slow tests and most that edit a field. `make test-lowest` runs all but the slow ones
# with the oldest versions that pyproject.toml allows, in .venv-lowest, with Python 3.10 or 3.11: there is no older torch
# for a later one.
# `make demo` builds .venv as well, then makes a scene, edits it by text and says how good the edit is, offline.

PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
OLD_PYTHON ?= $(shell for python in python3.11 python3.10 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
LOWEST := .venv-lowest/bin
IN_PARALLEL := --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: demo test test-fast test-lowest format-check lint types tests format benchmarks clean

test: format-check lint types tests

test-fast: format-check lint types
	$(BIN)/pytest $(IN_PARALLEL) -m 'not slow and not field'

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/pytest $(IN_PARALLEL) -m 'not slow'

$(BIN)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "cds-nerf needs Python 3.10, 3.11 or 3.12; none is on the PATH (make PYTHON=/path/to/python)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(LOWEST)/.installed: pyproject.toml
	@test -n "$(OLD_PYTHON)" || { echo "torch's oldest version needs Python 3.10 or 3.11 (make OLD_PYTHON=/path/to/python)"; exit 1; }
	$(OLD_PYTHON) -m venv .venv-lowest
	sed -n 's/^ *"\([A-Za-z0-9_-]*\)>=\([0-9.]*\)".*/\1==\2/p' pyproject.toml > .venv-lowest/constraints.txt
	$(LOWEST)/pip install --quiet --disable-pip-version-check --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	touch $@

format-check: $(BIN)/.installed
	$(BIN)/ruff format --check .

lint: $(BIN)/.installed
	$(BIN)/ruff check .

types: $(BIN)/.installed
	$(BIN)/mypy

tests: $(BIN)/.installed
	$(BIN)/pytest $(IN_PARALLEL)

format: $(BIN)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(BIN)/.installed
	$(BIN)/cds-nerf demo

benchmarks: $(BIN)/.installed
	$(BIN)/python benchmarks/guidance_cost.py
	$(BIN)/python benchmarks/render_memory.py
	$(BIN)/python benchmarks/image_memory.py

clean:
	rm -rf .venv .venv-lowest build *.egg-info .mypy_cache .pytest_cache .ruff_cache
