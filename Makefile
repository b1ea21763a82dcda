# Every target makes .venv at the root first; `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
# The release whose CPU wheels are tested; `make lock` keeps it and takes the newest of everything else.
TORCH := 2.13.0
BIN := .venv/bin
STAMP := .venv/.installed
# The stages run `python` of this environment, activated or not.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help conformance outlines demo test lint types docs lock ui fuzz attack chaos

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## run the pipeline on the tiny experts, promote the result, compare it with the baselines
	$(BIN)/dvc repro
	$(BIN)/mango promote mango-tiny
	$(BIN)/python -m stages.summary

test: $(STAMP)  ## run all tests; installs what they need from the system when it may
	.ci/system-parts
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP) types  ## check style, types, docstrings and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(STAMP)  ## check the types
	$(BIN)/mypy

docs: $(STAMP)  ## write the parameter reference from the schemas, and check links and commands in the documents
	$(BIN)/python -m stages.reference docs/reference.md
	$(BIN)/python -m pytest tests/test_documents.py

conformance: $(STAMP)  ## check every architecture of the installed transformers; writes docs/architectures.md and the package's JSON
	$(BIN)/python -m tests.conformance --write

outlines: $(STAMP)  ## learn anew what lets models be extracted from headers alone; writes the package's outlines.json
	$(BIN)/python -m tests.conformance.outlines --write

lock:  ## write constraints.txt anew from the newest releases
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip
	build/lock/bin/python -m pip install --quiet 'torch==$(TORCH)' '.[dev]'
	( echo '# The versions that are tested together; written by `make lock`.' && \
	  build/lock/bin/python -m pip freeze --all --exclude mango-compose --exclude pip | sed -E 's/\+cpu$$//' ) > build/constraints.txt
	mv build/constraints.txt constraints.txt

chaos: $(STAMP)  ## kill each stage and promotion 200 times, fill the disk, start two at once (an hour; writes build/chaos.json)
	$(BIN)/python -m tests.robustness.chaos --full

attack: $(STAMP)  ## open malicious checkpoints and packages at every tier, as root and as an ordinary user
	$(BIN)/python -m tests.robustness.attack

ui: $(STAMP)  ## open the tracking pages
	$(BIN)/mango ui

fuzz: $(STAMP)  ## open 100,000 mutated files, and damage a model in 400 ways (about an hour; writes build/fuzz.json)
	$(BIN)/python -m tests.robustness.damage --times 100
	$(BIN)/python -m tests.robustness.fuzz --cases 100000
