# Everything sets itself up in .venv on a machine that has only Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NEEDS := pyproject.toml constraints.txt
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

PROMPT ?= a red apple
OUT ?= pictures
ARGS ?=
# As typed, even with quotes and dollar signs: make must not expand it, and the shell reads it from the environment.
override PROMPT := $(value PROMPT)
export PROMPT

.PHONY: help generate test test-slow test-gpu lint bench train-emoji clean

help:
	@echo 'make generate PROMPT="a red apple" [ARGS="--seed 7"]   draw a picture into $(OUT)/'
	@echo 'make test [ARGS="-k vae"]                              run the tests'
	@echo 'make test-slow                                         the conversion of a full-size checkpoint (minutes)'
	@echo 'make test-gpu                                          the same networks, pictures and training on a GPU'
	@echo 'make lint                                              ruff and mypy'
	@echo 'make bench                                             speed and memory beside diffusers'
	@echo 'make train-emoji                                       train the embedded model anew (hours)'

generate: $(VENV)/core.stamp
	@$(PY) -m minisd.generate --out $(OUT) $(ARGS) -- "$$PROMPT"

test: $(VENV)/test.stamp
	$(PY) -m pytest -m "not weights and not gpu and not slow" --numprocesses 2 --dist worksteal $(ARGS)

test-slow: $(VENV)/test.stamp
	$(PY) -m pytest -m slow $(ARGS)

test-gpu: $(VENV)/test.stamp
	$(PY) -m pytest -m gpu $(ARGS)

lint: $(VENV)/test.stamp
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(VENV)/test.stamp
	$(PY) benchmarks/speed.py $(ARGS)

train-emoji: runs/emoji-data/metadata.jsonl
	$(PY) -m minisd.train minisd/recipes/emoji.toml --data runs/emoji-data --out runs/emoji $(ARGS)

runs/emoji-data/metadata.jsonl: | $(VENV)/train.stamp
	$(PY) -m minisd.recipes.emoji_data runs/emoji-data

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# --- set-up: done once, and again only when the requirements change ---

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "minisd needs Python 3.11 or later, and \
	$(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: $(NEEDS) | $(PY)
	@echo "setting up $(VENV) (once; PyTorch is large)"
	$(INSTALL) .
	@touch $@

$(VENV)/test.stamp: $(NEEDS) | $(PY)
	@echo "setting up $(VENV) for the tests (once; PyTorch is large)"
	$(INSTALL) '.[dev,reference,data]'
	@touch $(VENV)/core.stamp $@

$(VENV)/train.stamp: $(NEEDS) | $(PY)
	@echo "setting up $(VENV) for training (once; PyTorch is large)"
	$(INSTALL) '.[data]'
	@touch $(VENV)/core.stamp $@
