# Everything that a fresh machine with python3, pip and make needs; no compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup report test lint clean browser
.DEFAULT_GOAL := help

help:
	@echo "make report   set everything up, scan the demo model, write runs/demo/report.html"
	@echo "make test     set everything up, run lint, types and all the tests"
	@echo "make setup    only set everything up, in $(VENV)"

setup: $(STAMP)

# Debian ships python3 without ensurepip unless python3-venv is installed: then pip is asked to reach into the environment.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV) || $(PYTHON) -m venv --clear --without-pip $(VENV)
	$(PYTHON) -m pip --version >/dev/null
	$(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check --quiet --progress-bar off -c constraints.txt torch
	$(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check --quiet --progress-bar off -c constraints.txt -e '.[demo,development]'
	@touch $@

report: setup
	$(BIN)/outlierscope scan --out runs/demo --overwrite

lint: setup
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

# Tests of the report look at it in Debian's Chromium; where it cannot be installed they are skipped and say so.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && SUDO= || SUDO="sudo -n"; \
	  $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium; } || echo "no chromium: tests of the report in a browser are skipped"

test: setup lint browser
	HF_HUB_OFFLINE=1 $(BIN)/pytest

clean:
	rm -rf $(VENV) runs
