# make run: everything, on the built-in market. make test: the tests. make help: the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export DAGSTER_HOME ?= $(CURDIR)/dagster_home
export ATFT_DATA_DIR ?= $(CURDIR)/data

# The last two years of this file stay unseen until the real-data issue's final look.
ifneq (,$(findstring nasdaq_eod_2005_2017,$(ATFT_PRICES)))
export ATFT_START_DATE ?= 2010-01-01
export ATFT_END_DATE ?= 2015-12-31
endif

PEERS := .venv-structure-peers
PEER_FILES := benchmarks/results/structure_peers
PEER_CASES := $(addprefix --case ,er2_d20 var20 var20_laplace var20_garch_t var20_t250 var20_garch_t_t250 market_given)

.PHONY: help run walk-forward run-real test walk bench bench-peers bench-structure-peers lint audit docs ui alert-test clean-runs tensorboard faults soak clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	@touch $@

run: $(VENV)/.installed  ## materialize the whole graph and print what every check found
	$(BIN)/python -m atft_pipeline run

walk-forward: $(VENV)/.installed  ## a model per test period, scored out of sample, and their report
	$(BIN)/python -m atft_pipeline walk-forward

run-real: export ATFT_SOURCE = files
run-real: export ATFT_DATASET = nasdaq
run-real: export ATFT_PRICES = ../shared/data/nasdaq_eod_2005_2017.parquet
run-real: export ATFT_START_DATE = 2010-01-01
run-real: export ATFT_END_DATE = 2015-12-31
run-real: $(VENV)/.installed  ## the same on the real file, 2010 to 2015
	$(BIN)/python -m atft_pipeline run

test: $(VENV)/.installed  ## the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

walk: $(VENV)/.installed  ## the UI walked through in a headless browser; skipped without chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/integration/test_browser_walk.py

bench: $(VENV)/.installed  ## speed and memory of features and training, as ratios and JSON
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/graph.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python -m atft_model bench --json benchmarks/results/training.json

.venv-peers/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -r benchmarks/peers.txt
	@touch $@

bench-peers: $(VENV)/.installed .venv-peers/.installed  ## training speed beside pytorch-forecasting and neuralforecast
	$(BIN)/python benchmarks/peers.py

$(PEERS)/.installed: benchmarks/structure_peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q -r benchmarks/structure_peers.txt
	$(PEERS)/bin/python -m pip install -q --no-deps dagma==1.1.1  # its linear part needs no torch
	@touch $@

bench-structure-peers: $(VENV)/.installed $(PEERS)/.installed  ## the structure learner against published ones
	$(BIN)/python -m benchmarks.structure --export $(PEER_FILES) --seeds 3000:3003 $(PEER_CASES)
	TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/structure_peers.py $(PEER_FILES)
	$(BIN)/python -m benchmarks.structure --score $(PEER_FILES)
	$(BIN)/python -m benchmarks.structure --threads 1 --seeds 3000:3003 $(PEER_CASES)

lint: $(VENV)/.installed  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.venv-audit/.installed: .ci/audit.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install -q -r .ci/audit.txt
	@touch $@

audit: $(VENV)/.installed  ## dependencies: as pinned, and without known vulnerabilities (3: could not be looked up)
	-@$(MAKE) -s .venv-audit/.installed
	$(BIN)/python -m atft_pipeline.dependency_audit

docs: $(VENV)/.installed  ## write docs/features.md and docs/checks.md from the code
	mkdir -p docs
	$(BIN)/python -m atft_pipeline features-table > docs/features.md.new
	mv docs/features.md.new docs/features.md
	$(BIN)/python -m atft_pipeline checks-table > docs/checks.md.new
	mv docs/checks.md.new docs/checks.md

ui: $(VENV)/.installed  ## the Dagster UI on this machine, port 3000
	env -u DAGSTER_MODULE_NAME $(BIN)/dagster dev -h 127.0.0.1

alert-test: $(VENV)/.installed  ## send one message to every address in ATFT_ALERTS
	$(BIN)/python -m atft_pipeline alert-test

clean-runs: $(VENV)/.installed  ## show disk use and old, unused runs; DELETE=1 deletes them, DAYS=30
	$(BIN)/python -m atft_pipeline clean-runs --days $(or $(DAYS),30) $(if $(DELETE),--delete)

tensorboard: $(VENV)/.installed  ## the runs' health records in TensorBoard, as they grow, port 6006
	$(BIN)/python -m atft_pipeline.tensorboard --serve

faults: $(VENV)/.installed  ## plant every known fault, see it caught, write docs/faults.md
	$(BIN)/python -m atft_model faults --out docs/faults.md

soak: export ATFT_SOURCE = synthetic
soak: export ATFT_DATASET = soak
soak: $(VENV)/.installed  ## 50 epochs on the built-in market: memory must stay flat
	$(BIN)/python -m atft_pipeline run --select '*stock_graph' --config benchmarks/soak_market.yaml
	$(BIN)/python -m atft_model soak --panel $(ATFT_DATA_DIR)/soak/panel --graph $(ATFT_DATA_DIR)/soak/stock_graph

clean:  ## remove the virtual environment and caches; data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache
