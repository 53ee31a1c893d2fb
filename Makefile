# make demo    install into .venv and run the whole line on rendered clips
# make test    install into .venv and run the tests
# make lint    ruff and mypy
# make format  let ruff lay out the code

PYTHON ?= python3
VENV   ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY := $(VENV)/.installed-for-vshard

.PHONY: demo test lint format
demo: $(READY)
	$(BIN)/vshard demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	$(BIN)/python -c "import pathlib; pathlib.Path('$(READY)').touch()"
