# `make test` on a machine with Python 3.10 to 3.12: builds .venv, then checks format, lint, types and tests.
# `make demo` builds .venv as well, then makes a scene, edits it by text and says how good the edit is, offline.

PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

.PHONY: demo test format-check lint types tests format benchmarks clean

test: format-check lint types tests

$(BIN)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "cds-nerf needs Python 3.10, 3.11 or 3.12; none is on the PATH (make PYTHON=/path/to/python)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

format-check: $(BIN)/.installed
	$(BIN)/ruff format --check .

lint: $(BIN)/.installed
	$(BIN)/ruff check .

types: $(BIN)/.installed
	$(BIN)/mypy

tests: $(BIN)/.installed
	$(BIN)/pytest

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
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
