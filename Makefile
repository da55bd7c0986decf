# Set-up and everyday commands. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo

.PHONY: demo test test-slow check docs package try-oldest try-newest

demo: $(VENV)/ready
	$(VENV)/bin/python -m wsol_jax.main --config configs/shapes_resnet.py --workdir $(DEMO)

# Tests in as many processes as there are cores; a file's tests mostly stay in one of them.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal --durations 15

test: $(VENV)/ready
	$(PYTEST) -m 'not slow'

# One of several shares of their files by SHARE=2/3.
SHARE ?= 1/1

test-slow: $(VENV)/ready
	$(PYTEST) -m slow --share $(SHARE)

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/ready
	$(VENV)/bin/python -m sphinx -b html -n -W --keep-going --quiet docs docs/_build/html

# Wheel and source archive, tried outside the checkout: with the oldest and the newest libraries.
PACKAGE = build/package

package: $(VENV)/ready
	rm -rf $(PACKAGE)
	$(VENV)/bin/python -m build --no-isolation --outdir $(PACKAGE)
	sed -n '/^install_requires/,/^$$/s/ >= /==/p' setup.cfg > $(PACKAGE)/oldest.txt
	$(MAKE) --jobs 2 try-oldest try-newest

try-oldest:
	PYTHON=$(PYTHON) .ci/try $(PACKAGE)/*.whl --constraint $(PACKAGE)/oldest.txt

try-newest:
	PYTHON=$(PYTHON) .ci/try $(PACKAGE)/*.tar.gz

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
