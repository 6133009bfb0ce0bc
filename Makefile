# Both `demo` and `test` create their own virtual environment and install what they need into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: demo test test-slow test-all mutants coverage lowest lint docs gpu clean

demo: $(VENV)/demo.stamp  ## train, export, infer and verify, into runs/demo
	$(BIN)/mdlstm train --steps 1000 -o runs/demo --force
	$(BIN)/mdlstm export runs/demo --size 8 --size 32 --force
	$(BIN)/python -c 'import numpy; from mdlstm_tk.data.builtin.diagonal import DiagonalTask; \
	  numpy.save("runs/demo/matrix.npy", DiagonalTask((8, 8)).batch(seed=1, step=0, count=1).x)'
	$(BIN)/mdlstm infer runs/demo/matrix.npy -m runs/demo/model-8x8.onnx --force
	$(BIN)/mdlstm verify runs/demo

test: $(VENV)/test.stamp  ## run the tests that guard behaviour, without those that are slow by nature
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(VENV)/test.stamp  ## run those: documentation blocks, installations, browsers, Ray, fuzzers, whole trainings
	$(BIN)/python -m pytest -n auto -m "slow and not weekly"

test-all: test test-slow  ## run all tests, also those that are left to the weekly workflow
	$(BIN)/python -m pytest -n auto -m weekly

mutants: $(VENV)/test.stamp  ## change the code at random places and count the changes that no test notices
	$(BIN)/python tests/mutants.py build/mutants --count 500

coverage: $(VENV)/test.stamp  ## run all tests and report the lines that none of them runs; slower than `test`
	$(BIN)/python -m pytest -n auto --cov --cov-report=term

lowest:  ## install the lowest version of every dependency into .venv-lowest; train, export and run export tests there
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install --resolution lowest-direct -e '.[train,image,data,large,tensorboard,ray,test,cpu]'
	.venv-lowest/bin/mdlstm train --steps 100 -o build/lowest --force
	.venv-lowest/bin/mdlstm export build/lowest --size 8 --force
	.venv-lowest/bin/mdlstm verify build/lowest
	.venv-lowest/bin/python -m pytest -q -m "not slow" tests/core tests/export tests/training

lint: $(VENV)/test.stamp  ## run the linter, the formatter, the type checker and the contract of the floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/docs.stamp  ## build the site into build/docs; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -d build/doctrees docs build/docs
	@echo built build/docs/index.html

gpu: $(VENV)/test.stamp  ## run the tests that need an NVIDIA GPU and measure the layer there, into build/gpu
	$(BIN)/python benchmarks/gpu.py

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) .venv-lowest build dist *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mdlstm-tk needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,$(RUNTIME)]'
	touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,image,data,large,tensorboard,ray,test,dev,$(RUNTIME)]'
	touch $@

$(VENV)/docs.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,docs,$(RUNTIME)]'
	touch $@
