PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
PARAMS ?= params/phantom.yaml
OWN = default-src 'self' ws://127.0.0.1:* ws://localhost:* data: blob: 'unsafe-inline' 'unsafe-eval'
CLOSED = "{'headers': {'Content-Security-Policy': \"$(OWN)\"}}"
APP ?= adlib/classify/page.ipynb
CULL = --MappingKernelManager.cull_idle_timeout=90 --MappingKernelManager.cull_interval=30
PYTEST ?=
STRIP = --FileContentsManager.pre_save_hook=adlib.study.execution.strip_outputs

.PHONY: help setup study smoke check test lint docs lab app clean

help:
	@echo "make study | smoke | check | test | lint | docs | lab | app | clean"

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adlib needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.lock: up to 7 GB, 4 to 6 minutes"
	$(BIN)/python -m pip install --progress-bar on --requirement requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $@

$(TOOLS): $(READY) requirements-dev.lock
	$(BIN)/python -m pip install --progress-bar on --requirement requirements-dev.lock
	touch $@

setup: $(READY)

study: $(READY)
	$(BIN)/python run_all.py --params $(PARAMS)

smoke: $(READY)
	$(BIN)/python run_all.py --params params/smoke.yaml

check: $(READY)
	$(BIN)/python run_all.py --params $(PARAMS) --check

test: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile $(PYTEST)

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/numpydoc lint $(wildcard adlib/*.py adlib/*/*.py adlib/*/*/*.py)

docs: $(TOOLS)
	$(BIN)/mkdocs build --strict --site-dir build/site

lab: $(READY)
	$(BIN)/jupyter lab $(STRIP) --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

app: $(READY)
	$(BIN)/voila $(APP) --token --Voila.ip=127.0.0.1 --Voila.tornado_settings=$(CLOSED) --VoilaConfiguration.file_denylist="['.*']" $(CULL)

clean:
	rm -rf outputs/phantom outputs/smoke build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
