# Every target does its own set-up in .venv; nothing outside this folder is touched.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COMPILE := $(BIN)/uv pip compile --python-version 3.11 --no-header --annotation-style line --quiet
COMPILE_CPU := $(COMPILE) --override requirements/overrides.txt --no-emit-package torch
COMPILE_GPU := $(COMPILE) --python-platform x86_64-manylinux_2_28

.PHONY: setup demo test check format lock clean
.DEFAULT_GOAL := setup

setup: $(READY)

# torch first, by exact version; then everything else exactly as locked, with no resolver at work.
$(READY): requirements/cpu.txt requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --no-deps -r requirements/cpu.txt
	$(BIN)/pip install --quiet --no-deps -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# The demo of README.md, in ./llambert-demo.
demo: setup
	$(BIN)/llambert demo

test: setup
	$(BIN)/python -m pytest tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	$(BIN)/pip install --quiet uv
	$(COMPILE_CPU) requirements/cpu.in -o requirements/cpu.txt
	$(COMPILE_CPU) requirements/dev.in -o requirements/dev.txt
	$(COMPILE_GPU) requirements/gpu.in -o requirements/gpu.txt

clean:
	rm -rf $(VENV) build dist *.egg-info
