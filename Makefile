# Every job of the project by name. `make` alone lists them.
#
# The environment (.venv) is made by the first job that needs it, once, and made again when the pins change: its stamp
# carries a checksum of constraints.txt and of the dependencies in pyproject.toml (everything above its [tool] tables).

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PROFILE ?=
DATASET ?=
MODEL ?=
PORT ?= 8000
MINUTES ?= 20
PIECES ?=

VENV := .venv
BIN := $(VENV)/bin
EXTRAS := book,lab,test,dev
PINS := $(shell sed '/^\[tool/,$$d' pyproject.toml | cat - constraints.txt | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.pins-$(PINS)
QUOTED = '$(subst ','\'',$(1))'
OPTIONS = $(if $(DATASET),--dataset $(call QUOTED,$(DATASET))) $(if $(MODEL),--model $(call QUOTED,$(MODEL))) \
  $(if $(PROFILE),--profile $(call QUOTED,$(PROFILE)))
PYTEST_ALONE = OMP_NUM_THREADS=1 $(BIN)/pytest
PYTEST = $(PYTEST_ALONE) -n 2 --dist loadfile --no-loadscope-reorder

# What a user's shell has set for other projects shall not reach this one.
unexport PYTHONPATH PYTHONHOME PYTHONOPTIMIZE MPLBACKEND MATPLOTLIBRC PIP_USER PIP_TARGET PIP_PREFIX

.DEFAULT_GOAL := help
.PHONY: help install reproduce book pdf serve lab test test-all check links bench campaign on-gpu pins clean distclean

help: ## this list
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo "Settings: PROFILE=quick|full|scratch|shipped DATASET=cifar100|flowers102|flowers102-kaggle|demo|folder:PATH MODEL=NAME PYTHON=python3.11"

install: $(STAMP) ## the environment alone: .venv with everything that is pinned

$(STAMP):
	@$(if $(PYTHON),,{ echo "make: no Python here; install Python 3.11 or 3.12, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; })
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "make: $(PYTHON) is not Python 3.11 or 3.12, with which the pins were tested: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Making $(VENV) (once; a few minutes, most of it the download of torch) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

reproduce: $(STAMP) ## measure, run the notebooks, build the book; only what changed is done again
	@$(BIN)/cctlib reproduce $(OPTIONS)

book: $(STAMP) ## build the book from the notebooks that were run last
	@$(BIN)/python -m tools.book make

pdf: $(STAMP) ## print the book that was built last to _build/book.pdf (needs: playwright install chromium)
	@$(BIN)/python -m tools.book pdf

serve: $(STAMP) ## show the built book at http://localhost:PORT (8000)
	@test -f _build/html/index.html || { echo "make: there is no book yet; run: make reproduce" >&2; exit 2; }
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lab: $(STAMP) ## the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks

test: $(STAMP) ## all tests but the slow ones; says at the end what was left out
	@$(PYTEST) -m "not slow"
	@echo "Left out: $$($(PYTEST_ALONE) --collect-only -q -m slow 2>/dev/null | grep -c ::) tests marked slow (make test-all runs them), and those listed above as SKIPPED, each with its reason."

test-all: $(STAMP) ## all tests, the slow ones too
	@$(PYTEST)

check: $(STAMP) ## lint, format, types, notebooks without outputs, workflows, the project's own files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb
	@if command -v actionlint >/dev/null; then actionlint; else echo "actionlint is not installed here: the workflows were not linted"; fi
	@$(BIN)/pytest -q tests/test_project.py tests/test_architecture.py

links: $(STAMP) ## try every link of the book that leaves it (needs the network)
	@$(BIN)/python -m tools.book links

bench: $(STAMP) ## speed, against other people's code in the same run
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

campaign: $(STAMP) ## train the networks of tools/networks.tsv one after the other, each from where it was stopped (days without a GPU)
	@for row in $$(seq 1 $$(($$(wc -l < tools/networks.tsv) - 1))); do \
	  PATH="$(CURDIR)/$(BIN):$$PATH" SLURM_ARRAY_TASK_ID=$$row bash tools/slurm_array.sh tools/networks.tsv || exit 1; done

on-gpu: ## tests, benchmarks and the published recipe on a GPU, MINUTES=20 in all; PIECES=DIR where there is no network
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tools.on_gpu run --minutes $(MINUTES) $(if $(PIECES),--pieces $(call QUOTED,$(PIECES)))

pins: ## resolve the newest versions in a fresh environment and write them to constraints.txt
	@rm -rf .venv-pins && $(PYTHON) -m venv .venv-pins
	@.venv-pins/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@{ sed -n '/^#/p' constraints.txt; .venv-pins/bin/python -m pip freeze --all --exclude-editable --exclude pip; } > constraints.new
	@mv constraints.new constraints.txt && rm -rf .venv-pins && git diff --stat constraints.txt

clean: ## remove the built book and caches; results in runs/ and the environment stay
	@rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find cctlib tools tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove results (runs/) and the environment (.venv) as well
	@rm -rf runs $(VENV) *.egg-info
