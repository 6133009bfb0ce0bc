# Both targets make their own virtual environment and install what they need into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: demo test lint clean

demo: $(VENV)/demo.stamp  ## train, export, infer and verify, into runs/
	$(BIN)/mdlstm demo

test: $(VENV)/test.stamp  ## all tests
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/test.stamp  ## linter, formatter and type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:  ## remove the environment and all that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mdlstm-tk needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,$(RUNTIME)]'
	touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,image,data,tensorboard,ray,dev,$(RUNTIME)]'
	touch $@
