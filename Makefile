# One folder holds everything that is installed: .venv (replicator and its tests).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install lint types test
install: .venv/.installed
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

test: install
	$(BIN)/pytest
