# What people and CI run alike. Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo up test test-slow test-cloud check bench bench-peers format clean

setup: $(STAMP)

# torch first and alone: with the CPU build in place nothing asks for gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Sundog needs Python 3.11 or later: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies (about 2 minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools wheel
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: setup
	@$(BIN)/sundog demo

up: setup
	@$(BIN)/sundog up --demo

test: setup
	@$(BIN)/python -m pytest

test-slow: setup
	@$(BIN)/python -m pytest -m 'slow and not cloud and not browser'

test-cloud: setup
	@$(BIN)/python -m pytest -m cloud tests/cloud

check: setup
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python tests/check_docs.py

format: setup
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

# Each claim's short form; `python benchmarks/NAME.py --help` tells of the long one.
bench: setup
	@mkdir -p build/bench
	@for file in benchmarks/*.py; do \
	  echo "== $$file --quick"; \
	  $(BIN)/python $$file --quick --json build/bench/$$(basename $$file .py).json || exit 1; \
	done

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
