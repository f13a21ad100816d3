# make demo: the whole way in minutes.   make test: the tests.   Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CORPUS := work/synthetic_es
RUN := runs/demo/sequence_batch_norm/seed1

.PHONY: venv demo test test-all lint clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "asrkit needs Python 3.11 or newer; give one with: make PYTHON=python3.11 ...")'
	@echo "installing asrkit and what it needs into $(VENV) (once; about two minutes and 6 GB, most of it torch)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: venv
	@echo "== 1. Spanish speech, made on this machine"
	@$(BIN)/asrkit data synth --output $(CORPUS) --hours 1 --speakers 56 --seed 1
	@echo; echo "== 2. Training (Ctrl-C saves; the same command goes on)"
	@$(BIN)/asrkit train recipes/demo.yaml --data.root=$(CORPUS)
	@echo; echo "== 3. Speakers and sentences it has never heard"
	@$(BIN)/asrkit evaluate $(RUN) --worst 3
	@echo; echo "== 4. Audio to text with the model alone"
	@$(BIN)/asrkit transcribe --model $(RUN)/model --reference $(CORPUS)/test.tsv --first 5
	@echo; echo "learning curves  $(RUN)/curves.png"; echo "run folder       $(RUN)"; echo "model            $(RUN)/model"

test: venv
	@$(BIN)/python -m pytest

test-all: venv
	@$(BIN)/python -m pytest -m "not gpu and not soak"

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) work runs
