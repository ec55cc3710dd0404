# Two commands: `make demo` and `make test`. Everything else is a convenience.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

# One torch thread per process: with two, OpenMP spinning costs more than it brings.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint format docs clean

demo: $(VENV)/.ok
	$(BIN)/exhume audit

test: $(VENV)/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --durations=10

lint: $(VENV)/.ok
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.ok
	$(BIN)/python -m exhume.formula docs/formulas.md
	$(BIN)/python -m exhume.cli.catalogue docs/catalogue.md

$(VENV)/.ok: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache runs
