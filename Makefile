# Two commands: `make serve` runs the main job, `make test` passes the tests. Both set everything up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.jouleserve-installed
# Nobody phones home, and no model hub is asked: the default model comes from a package.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export RAY_USAGE_STATS_ENABLED := 0
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-fast check format docs size clean gpu-check rapl-wraps nvml-cycle metering-cost log-cost oracle-aiperf

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Install everything into .venv (done by the other commands when needed)

$(STAMP): pyproject.toml requirements/cpu-constraints.txt requirements/cpu-overrides.txt scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/setup.sh
	@touch $@

serve: $(STAMP) ## Serve the default model at http://127.0.0.1:8000 (Ctrl-C stops everything)
	@exec $(BIN)/jouleserve serve serve_config.yaml

test: $(STAMP) ## All tests: the fast ones, then those with real Ray and vLLM
	$(BIN)/python -m pytest

test-fast: $(STAMP) ## The tests that start neither Ray nor vLLM
	$(BIN)/python -m pytest -m "not ray and not vllm and not slow"

check: $(STAMP) ## Linters, types, import rules, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m serve_app.observers.docs --check

gpu-check: $(STAMP) ## Check the meter of this machine's NVIDIA GPUs (only reads); without one, its tests
	@if [ -e /dev/nvidiactl ]; then exec $(BIN)/jouleserve gpu-check; else \
	  echo "no NVIDIA GPU here: running the check against the fake library"; \
	  exec $(BIN)/python -m pytest -q tests/gpu_check; fi

rapl-wraps: $(STAMP) ## RAPL over three wraps, pyRAPL beside it: writes docs/results/rapl-wraps
	$(BIN)/uv pip install --quiet --target ~/.cache/jouleserve/oracles/pyRAPL --no-deps pyRAPL==0.2.3.1
	$(BIN)/python tests/meters/rapl_wraps.py --write docs/results/rapl-wraps

nvml-cycle: $(STAMP) ## One reading cycle of 8 fake GPUs: writes docs/results/nvml-cycle
	$(BIN)/python tests/meters/nvml_cycle.py --write docs/results/nvml-cycle

metering-cost: $(STAMP) ## What metering costs one engine, on and off in turn: writes docs/results/metering-cost
	$(BIN)/python -m serve_app.compare.metering_cost --out docs/results/metering-cost

log-cost: $(STAMP) ## What the request log costs at 2,000 rows/s: writes docs/results/request-log-cost
	$(BIN)/python -m serve_app.request_log.bench --out docs/results/request-log-cost

oracle-aiperf: $(STAMP) ## Our J per output token beside aiperf's, on one run: writes docs/results/aiperf-DATE
	$(BIN)/python tests/oracles/aiperf_energy.py

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Write the generated docs
	$(BIN)/python -m serve_app.observers.docs

size: ## Lines per file
	@git ls-files '*.py' | xargs wc -l | sort -n | tail -40

clean: ## Remove the environment (the model cache stays)
	rm -rf $(VENV)
