# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check bench clean

help:
	@echo "make demo    export the bundled checkpoints and run every task: demo/index.html, demo/gallery.png"
	@echo "make test    run the test suite"
	@echo "make check   ruff and mypy"
	@echo "make bench   measure steps, sizes and precisions on this machine: benchmarks/results"
	@echo "make clean   remove what these made"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "framert needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/framert export models/blocks -o demo/blocks.bundle --force
	$(BIN)/framert export models/blocks-univg -o demo/blocks-univg.bundle --force
	$(BIN)/python benchmarks/blocks/gallery.py demo/blocks.bundle demo/blocks-univg.bundle -o demo

test: $(VENV)/installed
	$(BIN)/pytest -n auto --maxprocesses 4

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_scaling.py
	$(BIN)/python benchmarks/bench_precision.py
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache
