PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARAMS ?= params/phantom.yaml
UPLOAD_BYTES ?= 1073741824
LARGE = "{'websocket_max_message_size': $(UPLOAD_BYTES)}"
OWN = default-src 'self' ws://127.0.0.1:* ws://localhost:* data: blob: 'unsafe-inline' 'unsafe-eval'
CLOSED = "{'websocket_max_message_size': $(UPLOAD_BYTES), 'headers': {'Content-Security-Policy': \"$(OWN)\"}}"
APP ?= notebooks/05_interactive_classifier.ipynb

.PHONY: help setup study smoke check test lint lab app clean

help:
	@echo "make study | smoke | check | test | lint | lab | app | clean"

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adlib needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

setup: $(READY)

study: $(READY)
	$(BIN)/python run_all.py --params $(PARAMS)

smoke: $(READY)
	$(BIN)/python run_all.py --params params/smoke.yaml

check: $(READY)
	$(BIN)/python run_all.py --params $(PARAMS) --check

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.tornado_settings=$(LARGE) --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

app: $(READY)
	$(BIN)/voila $(APP) --token --Voila.ip=127.0.0.1 --Voila.tornado_settings=$(CLOSED) --VoilaConfiguration.file_denylist="['.*']"

clean:
	rm -rf outputs build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
