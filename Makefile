# Two commands: `make serve` runs the main job, `make test` passes the tests. Both set everything up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.jouleserve-installed
CPU_PROFILE := docs/results/profile-smollm2-135m-cpu
PARALLEL := -n auto --maxprocesses 4
DATA ?= ../shared/data
# Nobody phones home, and no model hub is asked: the default model comes from a package.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export RAY_USAGE_STATS_ENABLED := 0
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-fast check format docs size clean gpu-check profile-cpu published published-simulated rapl-wraps nvml-cycle metering-cost sim-speed sim-scale power-loop two-nodes flood fidelity results decision-speed log-cost oracle-aiperf oracle-vidur audit sbom

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Install everything into .venv (done by the other commands when needed)

$(STAMP): pyproject.toml requirements/cpu-constraints.txt requirements/cpu-overrides.txt scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/setup.sh
	@touch $@

serve: $(STAMP) ## Serve the default model at http://127.0.0.1:8000 (Ctrl-C stops everything)
	@exec $(BIN)/jouleserve serve serve_config.yaml

test: $(STAMP) ## All tests: those without Ray and vLLM in parallel, then those with them
	@BIN=$(BIN) PARALLEL="$(PARALLEL)" bash scripts/test.sh

test-fast: $(STAMP) ## The quick ones of the tests that start neither Ray nor vLLM
	@$(BIN)/python -m serve_app.simulator.compiled & bash scripts/test_tools.sh; bash scripts/test_browser.sh; wait
	$(BIN)/python -m pytest -m "not ray and not vllm and not slow" $(PARALLEL)

check: $(STAMP) ## Linters, types, import rules, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m serve_app.observers.docs --check
	$(BIN)/python -m serve_app.profiler.shipped --check
	$(BIN)/python -m serve_app.observers.prometheus_rules --check

gpu-check: ## Meter, engine and profile of this machine's NVIDIA GPU (sets nothing); without one, their tests
	@if [ -e /dev/nvidiactl ]; then PYTHON=$(PYTHON) exec bash scripts/gpu_check.sh; fi; \
	echo "no NVIDIA GPU here: running the tests of the check, against the fake library"; \
	$(MAKE) --no-print-directory setup && exec $(BIN)/python -m pytest -q tests/gpu_check \
	  tests/profiler/test_torch_engine.py tests/profiler/test_torch_step.py tests/profiler/test_batching.py

profile-cpu: $(STAMP) ## Measure SmolLM2 on this CPU anew (15 minutes; nothing else may run) and fit its profile
	rm -rf $(CPU_PROFILE) && mkdir -p $(CPU_PROFILE)
	$(BIN)/jouleserve profile smollm2-135m-instruct --out configs/profiles/smollm2-135m-instruct@cpu.yaml \
	  --samples $(CPU_PROFILE) --picture $(CPU_PROFILE)/fit.png > $(CPU_PROFILE)/fit.txt
	cat $(CPU_PROFILE)/fit.txt

published: $(STAMP) ## Fit the GPU profiles to published tables, DATA=folder (see configs/published.yaml)
	$(BIN)/jouleserve published $(DATA) --report docs/results/published-profiles/report.md

published-simulated: $(STAMP) ## The published rows beside the simulator, DATA=folder: writes docs/results/published-simulated
	$(BIN)/python -m serve_app.published.simulated $(DATA) --report docs/results/published-simulated/report.md

rapl-wraps: $(STAMP) ## RAPL over three wraps, pyRAPL beside it: writes docs/results/rapl-wraps
	$(BIN)/uv pip install --quiet --target ~/.cache/jouleserve/oracles/pyRAPL --no-deps pyRAPL==0.2.3.1
	$(BIN)/python tests/meters/rapl_wraps.py --write docs/results/rapl-wraps

nvml-cycle: $(STAMP) ## One reading cycle of 8 fake GPUs: writes docs/results/nvml-cycle
	$(BIN)/python tests/meters/nvml_cycle.py --write docs/results/nvml-cycle

metering-cost: $(STAMP) ## What metering costs one engine, on and off in turn: writes docs/results/metering-cost
	$(BIN)/python -m serve_app.compare.metering_cost --out docs/results/metering-cost

sim-speed: $(STAMP) ## How quick the simulator is on this core
	$(BIN)/python -m serve_app.simulator.bench

sim-scale: $(STAMP) ## A week of 16.8 million requests over 300 and 1,000 replicas (8 minutes): writes docs/results/sim-scale
	$(BIN)/python -m serve_app.simulator.bench --week --out docs/results/sim-scale

power-loop: $(STAMP) ## Limits chosen against the default one: real engine, fake GPU (12 minutes; nothing else may run): writes docs/results/power-loop
	$(BIN)/python tests/integration/power_loop.py --out docs/results/power-loop --readme README.md

two-nodes: $(STAMP) ## One of two Ray nodes lost under load (5 minutes; nothing else may run): writes docs/results/two-nodes
	$(BIN)/python tests/integration/two_nodes.py --out docs/results/two-nodes

flood: $(STAMP) ## 500 wrong keys a second beside good requests (15 minutes; nothing else may run): writes docs/results/flood
	$(BIN)/python tests/integration/flooded.py --out docs/results/flood

fidelity: $(STAMP) ## The simulator against the real engine (1 hour; nothing else may run): writes docs/results/fidelity-*
	$(BIN)/python -m serve_app.fidelity --out docs/results/fidelity-smollm2-135m-cpu --readme README.md

results: $(STAMP) ## Policies x loads x models in the simulator, baselines tuned in hindsight (hours): writes docs/results/policies
	$(BIN)/python -m serve_app.results --out docs/results/policies --data $(DATA) --readme README.md

decision-speed: $(STAMP) ## Fleet decisions for 1, 64 and 1,000 replicas inside Ray's controller: writes docs/results/decision-speed
	$(BIN)/python -m serve_app.decision_bench --out docs/results/decision-speed

log-cost: $(STAMP) ## What the request log costs at 2,000 rows/s: writes docs/results/request-log-cost
	$(BIN)/python -m serve_app.request_log.bench --out docs/results/request-log-cost

oracle-aiperf: $(STAMP) ## Our J per output token beside aiperf's, on one run: writes docs/results/aiperf-DATE
	$(BIN)/python tests/oracles/aiperf_energy.py

oracle-vidur: $(STAMP) ## The simulator beside Vidur (1 GB on first use): writes docs/results/sim-vidur
	$(BIN)/python tests/oracles/vidur_speed.py --write docs/results/sim-vidur

audit: $(STAMP) ## Known vulnerabilities of what is installed (asks a service on the internet)
	@$(BIN)/python scripts/audit.py $(AUDIT)

sbom: $(STAMP) ## What is installed, as a CycloneDX SBOM: writes build/sbom.cdx.json
	@bash scripts/sbom.sh $(BIN)/python build/sbom.cdx.json && echo build/sbom.cdx.json

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Write what is generated: metrics, the README's table of profiles, rules for Kubernetes
	$(BIN)/python -m serve_app.observers.docs
	$(BIN)/python -m serve_app.profiler.shipped
	$(BIN)/python -m serve_app.observers.prometheus_rules

size: ## Lines per file
	@git ls-files '*.py' | xargs wc -l | sort -n | tail -40

clean: ## Remove the environment (the model cache stays)
	rm -rf $(VENV)
