# Two commands: `make demo` and `make test`. Everything else is a convenience.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

# One torch thread per process: with two, OpenMP spinning costs more than it brings.
export OMP_NUM_THREADS ?= 1

# Two other processors, as far as one machine can play them (see CONTRIBUTING.md).
OLDEST := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
	MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	MKL_ENABLE_INSTRUCTIONS=AVX2 MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell

.PHONY: demo test test-kernels lint format docs clean

demo: $(VENV)/.ok
	$(BIN)/exhume audit

test: $(VENV)/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --durations=10

test-kernels: $(VENV)/.ok
	$(OLDEST) $(BIN)/python -m pytest -n 2 -q $(TESTS)
	$(AVX2) $(BIN)/python -m pytest -n 2 -q $(TESTS)

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
