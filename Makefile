# Targets: setup, quickstart, test, compile, prove, samples, lint, bench, gpu-check, native, wheels. Each installs what it needs first, into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PROJECTS := pyproject.toml $(wildcard libraries/*/pyproject.toml native/*/pyproject.toml plugins/*/*/pyproject.toml)
PACKAGES := surogate_core $(wildcard libraries/*/src/surogate_* native/*/src/surogate_* plugins/*/*/src/surogate_*)
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false DO_NOT_TRACK=1

.PHONY: setup quickstart test compile prove samples lint bench gpu-check native wheels
.NOTPARALLEL:

setup: $(VENV)/installed

$(VENV)/installed: requirements-dev.txt constraints.txt $(PROJECTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt && touch $@

quickstart: setup
	$(OFFLINE) $(BIN)/python examples/quickstart/quickstart.py

test: setup
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n 2 --dist loadgroup

compile: setup
	$(OFFLINE) SUROGATE_PROVE=1 $(BIN)/python -m pytest -q native/*/tests/test_gemm.py -k "forward_compiles or data_centres"

prove: setup
	$(OFFLINE) SUROGATE_PROVE=1 $(BIN)/python -m pytest -v -m prove

samples: setup
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python plugins/loggers/console/tests/terminal.py docs/terminal

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)

bench: $(VENV)-bench/installed
	$(OFFLINE) $(VENV)-bench/bin/python bench/cpu.py

$(VENV)-bench/installed: $(VENV)/installed $(wildcard bench/requirements*.txt)
	test -x $(VENV)-bench/bin/python || $(PYTHON) -m venv $(VENV)-bench
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(VENV)-bench/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth"
	$(VENV)-bench/bin/python -m pip install --quiet -c constraints.txt -r bench/requirements.txt
	$(VENV)-bench/bin/python -m pip install --quiet --no-deps -r bench/requirements-alone.txt && touch $@

gpu-check: setup
	$(OFFLINE) $(BIN)/python bench/gpu_check.py

native: setup
	$(BIN)/python -m surogate_native_kit.nvcc

wheels: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir dist . $(sort $(dir $(filter-out pyproject.toml,$(PROJECTS))))
