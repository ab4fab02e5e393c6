PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

test: lint
	HYPOTHESIS_PROFILE=quick $(BIN)/pytest -n 2
deep: .venv/stamp
	HYPOTHESIS_PROFILE=deep $(BIN)/pytest -n 2 -m "deep or not deep"
lint: .venv/stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python
bench: .venv/stamp
	$(BIN)/python benchmarks/cpu.py
demo: .venv/demo
	$(BIN)/python -m nbattn demo
clean:
	rm -rf .venv build dist demo-output .pytest_cache .ruff_cache .hypothesis
.venv/stamp: pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[dev,all]"
	touch $@
.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)" --editable ".[demo]"
	touch $@
.PHONY: demo test deep lint bench clean
