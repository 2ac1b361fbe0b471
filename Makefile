# Two commands to set up and go: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# Tests run side by side, a process a core.
ONE_THREAD = OMP_NUM_THREADS=1
STAMP := $(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test long lint clean

demo: $(VENV)/.ready  ## ten non-IID clients train a digit generator, then show its images
	$(BIN)/prismfl train --out runs/demo-$(STAMP)

test: $(VENV)/.ready  ## the default test suite
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n auto --dist worksteal

long: $(VENV)/.ready  ## what takes longer than CI allows: every judged data set, all of the fuzzing
	$(ONE_THREAD) PRISMFL_FUZZ=100000 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "slow or long"

lint: $(VENV)/.ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch goes first: asked for by a range, its largest build would come.
$(VENV)/.ready: pyproject.toml constraints.txt $(wildcard src/prismfl/*/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
