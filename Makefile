# Set-up and everyday commands. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo

.PHONY: demo test check

demo: $(VENV)/ready
	$(VENV)/bin/python -m wsol_jax.main --config configs/shapes_resnet.py --workdir $(DEMO)

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
