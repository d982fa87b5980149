# Thin: each target is a command or two that the README also gives for your own environment.
# uv is used when it is there, because it is faster; venv and pip do the same.
PYTHON ?= python3
BIN = .venv/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test check matrix bench install clean

demo: install
	$(BIN)/python train.py

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

matrix: install
	$(BIN)/python tests/matrix.py docs/matrix.md

bench: install
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/cost_sets.py

install: .venv/installed

.venv/installed: pyproject.toml
ifdef UV
	test -x $(BIN)/python || uv venv --python $(PYTHON) .venv
	VIRTUAL_ENV=.venv uv pip install -e ".[dev]"
else
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e ".[dev]"
endif
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
