# Two commands on a fresh machine, each doing all the set-up it needs: `make repro` and `make test`.
# `make repro` leaves out what the tests alone need. They need Python 3.11 to 3.13 (another one: make PYTHON=/path/to/python) and git.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
READY := .venv/.installed
TOOLS := .venv/.tools
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DVC_SITE_CACHE_DIR ?= $(CURDIR)/.dvc-site-cache
export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Every process that is started would compile what it imports: 1.5 s of processor time for paribus alone.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet
CHECK_PYTHON := import sys; (3, 11) <= sys.version_info < (3, 14) or \
    sys.exit("paribus needs Python 3.11 to 3.13, not " + sys.version.split()[0] + "; name one: make PYTHON=python3.12")

.PHONY: repro test test-quick test-long lint types figures docs venv tools clean gpu-dry-run
.DELETE_ON_ERROR:

repro: $(READY)  ## the whole curriculum
	@$(BIN)/dvc repro

# Tests wait for processes for half of their time: seven files side by side keep two cores busy.
WORKERS ?= 7
PYTEST := $(BIN)/pytest -q --dist loadfile --no-loadscope-reorder -n $(WORKERS)

test: $(READY) $(TOOLS)  ## the whole test suite
	@$(PYTEST)

test-quick: $(READY) $(TOOLS)  ## without real kills, processes, queues and clones
	@$(PYTEST) -m "not long"

test-long: $(READY) $(TOOLS)  ## kills, processes, queues and clones, repeated more often than the suite does
	@$(PYTEST) -m "long or soak" --soak

lint: $(READY) $(TOOLS)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache

figures: $(READY)  ## write every marked figure in README.md and docs from the file that holds it
	@$(BIN)/python tools/figures.py

docs: $(READY) .venv/.docs  ## docs/ as a site in site/, which opens from the disk; a link that leads nowhere fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

.venv/.docs: requirements-docs.lock $(READY)
	@$(PIP) --no-deps --requirement $<
	@touch $@

types: $(READY) $(TOOLS)
	@$(BIN)/mypy

venv: $(READY)  ## what the stages and the everyday commands run with

tools: $(READY) $(TOOLS)  ## that, and what the tests and the checks need besides

# The host side of CUDA without a card (docs/gpu.md): an environment of its own beside .venv, whose other packages it
# reads, with torch's CUDA build (3 GB to download), and a null device in place of the driver.
GPU := $(CURDIR)/.venv-gpu
NULL_CUDA := $(GPU)/null
ON_NULL = NULL_CUDA=$(NULL_CUDA) NULL_CARDS=2 LD_PRELOAD=$(NULL_CUDA)/null_runtime.so:$(NULL_CUDA)/null_rest.so \
  LD_LIBRARY_PATH=$(NULL_CUDA) TRITON_LIBCUDA_PATH=$(NULL_CUDA) CUBLAS_WORKSPACE_CONFIG=:4096:8 \
  TORCHINDUCTOR_CACHE_DIR=$(NULL_CUDA)/inductor TRITON_CACHE_DIR=$(NULL_CUDA)/triton PYTHONPATH=src \
  $(GPU)/bin/python -m pytest -q -p no:cacheprovider
OF_CARDS := wide_heads or default or gpt2 or d20 or compiled_step or 8_bit or loss or captured
gpu-dry-run: $(READY) $(TOOLS)  ## what would fail on a GPU, as far as the host decides it
	@PYTHONPATH=src $(BIN)/python tests/gpu/environment.py $(GPU)
	@$(GPU)/bin/python tests/gpu/build.py $(NULL_CUDA)
	@$(ON_NULL) tests/gpu
	@for card in "8 9 101376" "9 0 232448" "10 0 232448"; do set -- $$card; NULL_MAJOR=$$1 NULL_MINOR=$$2 NULL_SHARED=$$3 \
	  $(ON_NULL) tests/gpu -k "$(OF_CARDS)" || exit 1; done

clean:  ## the virtual environments; data, checkpoints and experiments stay
	rm -rf .venv .venv-gpu

# Compiled while both cores are idle; pip compiles what nobody imports as well, which takes ten times as long.
OFTEN := import dvc.cli, dvc.commands.repro, dvc.repo, dvc.stage.run, mlflow
OFTEN_TOO := import optuna, paribus.cli.commands, paribus.stages.training, paribus.train.trainer
OFTEN_IN_TESTS := import pytest, statsmodels.api
OFTEN_IN_TESTS_TOO := import transformers

# A stamp is removed before its install and written after it: an interrupted one starts again from an empty .venv.
# `dvc exp run --temp` changes its folder on the way, and loses the relative path of .dvc/config.
$(READY): .venv/.requirements pyproject.toml
	@$(PIP) --no-deps --no-build-isolation --editable .
	@$(BIN)/dvc config --local core.site_cache_dir '$(CURDIR)/.dvc-site-cache'
	@$(BIN)/python -c '$(OFTEN)' & often=$$!; $(BIN)/python -c '$(OFTEN_TOO)' && wait $$often
	@touch $@

# The packages of locks, every other one beside the rest, without resolving or compiling: pip works on one core. Then with
# resolving where something is missing: other builds of torch, and other platforms, need more.
define install
	@for half in 0 1; do grep -h '^[^#]' $(1) | awk "NR % 2 == $$half" >$@.half$$half; done
	@$(PIP) --no-compile --no-deps --requirement $@.half0 & beside=$$!; \
	  $(PIP) --no-compile --no-deps --requirement $@.half1; status=$$?; wait $$beside && exit $$status
	@$(BIN)/python -m pip check >/dev/null || $(PIP) --no-compile --constraint requirements.lock $(addprefix --requirement ,$(1))
endef

.venv/.requirements: requirements.lock
	@test -e $@ || { $(PYTHON) -c '$(CHECK_PYTHON)' && $(PYTHON) -m venv --clear .venv; }
	@rm -f $@ $(READY)
	@echo "installing the $$(grep -c '^[^\#]' $<) packages of $< into .venv (the whole set-up takes some minutes)"
	$(call install,$<)
	@touch $@

TOOL_LOCKS := requirements-lm.lock requirements-dev.lock
$(TOOLS): .venv/.requirements $(TOOL_LOCKS)
	@rm -f $@
	@echo "installing the $$(cat $(TOOL_LOCKS) | grep -c '^[^\#]') packages of $(TOOL_LOCKS), for the tests and the checks"
	$(call install,$(TOOL_LOCKS))
	@$(BIN)/python -c '$(OFTEN_IN_TESTS)' & often=$$!; $(BIN)/python -c '$(OFTEN_IN_TESTS_TOO)' && wait $$often
	@touch $@
