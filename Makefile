# The commands of this project; `make` alone lists them.
#
# PYTHON=python3.12 chooses the interpreter of the environment; without it the
# first Python >= 3.11 on the PATH is taken.

PYTHON ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help sample test test-legacy format docs setup setup-sample clean
.NOTPARALLEL:  # both setups write to .venv

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' Makefile

sample: setup-sample  ## prepare ./chandra_spectra from the embedded archive, offline
	@$(BIN)/chandra-spectra prepare chandra_spectra --archive embedded --with-responses --bins 64 \
	  --sources --labels examples/sample_classes.csv

test: setup  ## check everything: ruff, mypy, import-linter, pytest
	@sh tools/setup_browser.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest

test-legacy: setup  ## check that datasets 3.6 runs chandra_spectra.py, in .venv-legacy
	@sh tools/setup_legacy.sh
	$(BIN)/pytest tests/test_legacy.py

format: setup  ## mend what ruff can mend, then lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup-sample  ## write the generated pages of docs/: columns and command line
	$(BIN)/python tools/reference.py

setup:  ## make or refresh the environment in .venv
	@PYTHON='$(PYTHON)' sh tools/setup.sh test

# The sample needs far less than the tests do.
setup-sample:
	@PYTHON='$(PYTHON)' sh tools/setup.sh plots,report

# A prepared ./chandra_spectra may hold days of downloads, so it is left alone.
clean:  ## remove .venv, .venv-legacy, caches and builds (never a prepared dataset)
	rm -rf .venv .venv-legacy build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
