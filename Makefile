# make demo      see a call answered and a token written; ONCE=1 ends by itself
# make test      the whole suite in its own virtual environment
# make lint      ruff, mypy strict, a docstring on every public name
# make install   lay the service out under DESTDIR and PREFIX; make uninstall takes it away
# make clean     forget the virtual environments and caches

PYTHON  ?= python3
VENV    ?= .venv
# pip options for the test environment, such as "-c tests/lowest.txt".
PIP_ARGS ?=
BIN      = $(VENV)/bin

.PHONY: demo test lint programs install uninstall clean

demo: $(VENV)/.core
	$(BIN)/python -m vnctoken.sandbox.demo $(if $(ONCE),--once)

test: $(VENV)/.test programs
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the tests run besides Python: installed from Debian's packages where we may, named where we may not.
programs:
	tests/system-programs

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed; try make PYTHON=python3.12") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.core: $(VENV)/.venv setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.venv setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[test]'
	touch $@ $(VENV)/.core

$(VENV)/.lint: $(VENV)/.venv setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	touch $@ $(VENV)/.core $(VENV)/.test

clean:
	rm -rf .venv .venv-* build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
