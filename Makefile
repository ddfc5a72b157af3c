# Everything is one command; each makes its own environment first. `make help` lists them.
# Variables: ARGS (further arguments), BUDGET, SCALE, STUDY, SEEDS, PYTHON and PIP_ARGS (setup).

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The first supported interpreter that can make an environment; looked for only when one has to be made.
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && command -v $$python && break; done)
# Idle threads that spin take the cores from every other process (src/synaptune/__init__.py sets the same for programs that import it first).
export OMP_WAIT_POLICY ?= PASSIVE
# The variables as overrides; what ARGS says comes last and wins.
OVERRIDES = $(if $(BUDGET),protocol.budget=$(BUDGET)) $(if $(SEEDS),protocol.seeds=$(SEEDS)) \
	$(if $(STUDY),study.name=$(STUDY)) $(if $(SCALE),scale=$(SCALE)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup train sanity screen sweep-phase1 sweep-phase2 sweep-focused transfer ablation report wandb-report dashboard refine dendritic sample sensitivity ladder regimes docs needle bench-step bench-search bench-budget bench-screen bench-curve bench-noise bench-start bench-optimizer bench-images bench-gpu bench test test-slow lint check clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "BUDGET=N evaluations, SEEDS=N fresh seeds, SCALE=smoke|laptop|gpu|paper, STUDY=NAME of a study;"
	@echo "ARGS=\"...\" are further arguments of the command. For example: make sweep-phase1 BUDGET=100 STUDY=mine"

setup: $(READY) ## make the environment in .venv (every command does, quick when nothing changed)

$(READY): pyproject.toml constraints.txt
	@[ -x $(BIN)/python ] || [ -n "$(PYTHON)" ] || { echo "got no Python that can make an environment" >&2; \
		echo "  expected: Python 3.11 to 3.14 with venv and ensurepip" >&2; \
		echo "  to do: install one (Debian: apt install python3 python3-venv), or make PYTHON=/path/to/python" >&2; exit 2; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) -e '.[dev,wandb,hub]'
	@touch $@

train: $(READY) ## train one model; ARGS="model=gpt scale=smoke ..."
	$(BIN)/python train.py $(ARGS)

sanity: $(READY) ## train the synaptic and the plain model for a few seconds each
	$(BIN)/python train.py name=sanity scale=smoke $(ARGS)
	$(BIN)/python train.py name=sanity scale=smoke model=gpt $(ARGS)

sweep-phase1: $(READY) ## screen all parameters, tune those that matter, give the verdict; BUDGET= SEEDS= SCALE= STUDY=
	$(BIN)/synaptune phase1 $(OVERRIDES)

screen: $(READY) ## find out which of all parameters matter; SCALE= STUDY=
	$(BIN)/synaptune screen $(OVERRIDES)

sweep-phase2: $(READY) ## tune all parameters from the phase-1 optimum; BUDGET= SEEDS= SCALE= STUDY=
	$(BIN)/synaptune phase2 $(OVERRIDES)

sweep-focused: $(READY) ## sweep policy training, narrow, sweep again; ARGS="policy.start=FOLDER"
	$(BIN)/synaptune focused $(ARGS)

transfer: $(READY) ## run the best points of a study on another scale; SCALE= ARGS="protocol.start=STUDY"
	$(BIN)/synaptune transfer $(OVERRIDES)

ablation: $(READY) ## measure what each tuned parameter is worth, on paired seeds; STUDY= SEEDS=
	$(BIN)/synaptune ablation $(OVERRIDES)

report: $(READY) ## write one page with the evidence of a study; STUDY= ARGS="--against STUDY"
	$(BIN)/synaptune report $(or $(STUDY),phase1) $(ARGS)

wandb-report: $(READY) ## write the W&B report of a study; publish it if there is an API key; STUDY=
	$(BIN)/synaptune wandb report $(or $(STUDY),phase1) $(ARGS)

dashboard: $(READY) ## show the studies in the browser, also while they run; STUDY= ARGS="--port 8080"
	$(BIN)/synaptune dashboard $(STUDY) $(ARGS)

refine: $(READY) ## narrow a search space to a study's high performers; STUDY= ARGS="--out FILE.yaml"
	$(BIN)/synaptune refine $(or $(STUDY),phase1) $(ARGS)

dendritic: $(READY) ## compare small dendritic networks with controls on digits; ARGS="experiment=..."
	$(BIN)/synaptune dendritic experiment=dendritic-quick $(OVERRIDES)

sample: $(READY) ## continue a text with a trained model; ARGS="CHECKPOINT --prompt ..."
	$(BIN)/synaptune sample $(ARGS)

sensitivity: $(READY) ## measure what each parameter does to the training loss
	$(BIN)/synaptune sensitivity $(ARGS)

docs: $(READY) ## write docs/parameters.md from the declarations
	$(BIN)/python -m synaptune.cli.docs

ladder: $(READY) ## measure what each mechanism gains over the best plain model; ARGS="data=text data.path=FILE"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ladder.py $(ARGS)

regimes: $(READY) ## measure each mechanism in the task of its role; STUDY= (its report shows them) ARGS="regime=recall"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/regimes.py $(if $(STUDY),--study $(STUDY)) $(ARGS)

needle: $(READY) ## measure how far back models find a fact in text; ARGS="--seeds 3 ..."
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/needle.py $(ARGS)

bench-step: $(READY) ## measure the step time of the synaptic model against the plain one
	$(BIN)/python benchmarks/bench_step.py $(ARGS)

bench-search: $(READY) ## measure search quality: our cma, pycma, Optuna's samplers and random points
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_search.py $(ARGS)

bench-budget: $(READY) ## measure search quality at 20 to 300 noisy evaluations; ARGS="--seeds N"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_budget.py $(ARGS)

bench-screen: $(READY) ## measure the power of a screening on planted effects
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_screen.py $(ARGS)

bench-curve: $(READY) ## measure how well a learning curve predicts its end; ARGS="--candidates N"
	$(BIN)/python benchmarks/bench_curve.py $(ARGS)

bench-noise: $(READY) ## measure what common random numbers save; ARGS="--candidates N --seeds N"
	$(BIN)/python benchmarks/bench_noise.py $(ARGS)

bench-start: $(READY) ## measure CPU time to --help and to the first training step; ARGS="--against FOLDER"
	$(BIN)/python benchmarks/bench_start.py $(ARGS)

bench-gpu: $(READY) ## measure kernels, steps, populations and decoding on a GPU; ARGS="--minutes 8"
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-optimizer: $(READY) ## measure BiostatisV6 against AdamW, each at its best; ARGS="--images cifar10 --path FOLDER"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_optimizer.py $(ARGS)

bench-images: $(READY) ## measure image networks trained as one program; ARGS="--networks 16"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_image_population.py $(ARGS)

bench: $(READY) ## run every benchmark
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# One thread a process: the models of the tests are small, and two processes run them.
test: $(READY) ## run the tests without the slow proofs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(READY) ## run the slow proofs: statistics, fuzzing, benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

lint: $(READY) ## check formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

check: lint test test-slow ## run lint, then all tests

clean: ## remove what was built and installed; outputs/ stays
	rm -rf $(VENV) build .pytest_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
