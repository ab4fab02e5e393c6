PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
ORACLES := .venv-oracles
# Tests that stand together run on one worker, which keeps what they share.
WORKERS := -n 2 --dist worksteal

test: lint
	HYPOTHESIS_PROFILE=quick $(BIN)/pytest $(WORKERS)
deep: $(VENV)/stamp
	HYPOTHESIS_PROFILE=deep $(BIN)/pytest $(WORKERS) -m "deep or not deep"
strict: $(VENV)/stamp
	HYPOTHESIS_PROFILE=quick PYTHONWARNINGS=error $(BIN)/pytest $(WORKERS) -W error
lint: $(VENV)/stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python
oracles: $(ORACLES)/stamp
	$(ORACLES)/bin/pytest tests/whole/test_outside_oracles.py tests/whole/test_migrating.py \
		tests/whole/test_natten_real.py
# On a machine with a GPU, of whose Python everything is used as it is: `make gpu ARGS="--seconds 580"`.
gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_programme.py $(ARGS)
# The pages that are made from the code, and the site of all pages; it needs no network.
docs: $(VENV)/stamp
	$(BIN)/python -m docs_tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
bench: $(VENV)/stamp
	$(BIN)/python benchmarks/cpu.py
demo: $(VENV)/demo
	$(BIN)/python -m nbattn demo
clean:
	rm -rf $(VENV) $(ORACLES) build dist site demo-output .pytest_cache .ruff_cache .hypothesis
$(VENV)/stamp: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[dev,all]"
	touch $@
$(VENV)/demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[demo]"
	touch $@
$(ORACLES)/stamp: pyproject.toml
	$(PYTHON) -m venv --clear $(ORACLES)
# Where natten's setup sees a GPU, it compiles kernels for an hour.
	CUDA_VISIBLE_DEVICES= $(ORACLES)/bin/pip install --quiet "$(TORCH)" --editable ".[dev,oracles]"
	touch $@
.PHONY: demo test deep strict lint gpu docs bench oracles clean
