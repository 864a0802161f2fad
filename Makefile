# objstore: what people type. Every target does its own set-up; a second run finds its stamps and is quick.
#
#   make serve        the store on 127.0.0.1:9000, data in ./data      (make serve ARGS="--workers 4")
#   make test         lint and every test in its short form
#   make lint         ruff, mypy --strict, the import contract
#   make bench        figures, beside the machine's floor              (bench/README.md)
#   make bench-cluster  a gateway before eight nodes, beside a bare proxy
#   make bench-scale  what metadata costs among ten million objects    (make bench-scale ARGS="--objects 1000000")
#   make chaos        crash, rot and disk-loss tests in their long form
#   make simulate     100 nodes and 3,600 disks for ten simulated years
#   make conformance  ceph/s3-tests against a fresh server             (S3TESTS=path of a checkout)
#   make sample       keep what this commit writes for the tests       (VERSION=0.2.0, before a release)
#   make lock         pin the requirements again

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ./data
ARGS ?=
# The first interpreter that is new enough, the distribution's before whatever is first in the path: it is built with
# profile-guided optimisation, which those that people build for themselves mostly are not (10% of a GET's CPU). One
# without venv counts only if root can add it.
PYTHON ?= $(shell for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
	command -v $$python >/dev/null && $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || $$python -c 'import venv, ensurepip' 2>/dev/null; } \
	&& { echo $$python; break; }; done)

.PHONY: help serve test lint format bench bench-cluster bench-scale chaos simulate conformance sample lock clean setup setup-test
help:
	@sed -n '3,13s/^# \{0,1\}//p' Makefile

# --- set-up ---------------------------------------------------------------------------------------

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then
	  echo "objstore needs Python 3.11 or later with venv; none was found. Install it (apt-get install python3 python3-venv) or say make PYTHON=..." >&2; exit 1
	fi
	if ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then
	  package=$$($(PYTHON) -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	    echo "installing $$package"
	    apt-get update -qq </dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$package </dev/null >/dev/null
	  else
	    echo "Python's venv module is missing. Run: sudo apt-get install $$package" >&2; exit 1
	  fi
	fi
	$(PYTHON) -m venv $(VENV)
	# The checkout itself is importable; nothing is built or copied.
	echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/objstore-checkout.pth"
	touch $@

define install
	echo "installing $(1)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r $(1) </dev/null
	touch $@
endef

$(VENV)/.run: requirements/run.txt | $(VENV)/.made
	@$(call install,requirements/run.txt)

$(VENV)/.test: requirements/test.txt $(VENV)/.run
	@$(call install,requirements/test.txt)

$(VENV)/.clients: requirements/clients.txt $(VENV)/.test
	@$(call install,requirements/clients.txt)

# s3fs pins another botocore than the AWS CLI: it gets an environment of its own.
$(VENV)/.s3fs: requirements/s3fs.txt | $(VENV)/.made
	@$(BIN)/python -m venv $(VENV)/s3fs
	$(VENV)/s3fs/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --require-hashes -r requirements/s3fs.txt </dev/null
	touch $@

# The JavaScript SDK for the client tests.
$(VENV)/.npm: $(wildcard tests/clients/package-lock.json) | $(VENV)/.made
	@if [ -f tests/clients/package-lock.json ] && command -v npm >/dev/null; then
	  echo "installing tests/clients/package-lock.json"
	  npm ci --prefix tests/clients --silent --no-audit --no-fund </dev/null
	fi
	touch $@

setup: $(VENV)/.run
setup-test: $(VENV)/.clients $(VENV)/.s3fs $(VENV)/.npm

# --- targets --------------------------------------------------------------------------------------

serve: $(VENV)/.run
	@exec $(BIN)/python cmd/objstore serve --data $(DATA) $(ARGS)

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Three processes share the tests on two cores: most wait more than they work. Those of a file stay together, in
# their order; TESTERS=0 is one process, for a debugger. They start a store many hundred times: where Python may not
# keep what it compiles (PYTHONDONTWRITEBYTECODE), each start would compile all of it again.
TESTERS ?= 3
test: setup-test lint
	@$(BIN)/python -m compileall -q objstore
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(VENV)/.test
	@$(BIN)/python bench/compare.py $(ARGS)

bench-cluster: $(VENV)/.test
	@$(BIN)/python bench/cluster.py $(ARGS)

bench-scale: $(VENV)/.test
	@$(BIN)/python bench/scale.py $(ARGS)

# What has a long form. The others have one form only and are run by `make test`.
LONG ?= tests/blobs tests/chaos tests/codec tests/crash tests/iam tests/meta tests/node tests/objects tests/rental tests/upgrades tests/upkeep \
  tests/bench/test_noisy.py tests/cli/test_export.py tests/processes/test_purging.py tests/processes/test_quota.py
chaos: $(VENV)/.test
	@OBJSTORE_LONG=1 $(BIN)/python -m pytest --timeout 7200 $(LONG) $(ARGS)

simulate: $(VENV)/.test
	@OBJSTORE_LONG=1 $(BIN)/python -m pytest --timeout 7200 -s tests/upkeep/test_simulated_cluster.py $(ARGS)

conformance: $(VENV)/.test
	@OBJSTORE_LONG=1 $(BIN)/python -m tests.conformance.run $(ARGS)

# docs/formats.md, "Upgrade rule".
sample: $(VENV)/.test
	@test -n "$(VERSION)" || { echo "make sample VERSION=0.2.0" >&2; exit 1; }
	$(BIN)/python -m tests.upgrades.make_sample "$(VERSION)" $(ARGS)

# Hashes of every file of every pinned version; no registry's address is written.
COMPILE = $(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --strip-extras --allow-unsafe
lock: $(VENV)/.test
	@$(BIN)/python -m pip install --quiet pip-tools
	$(COMPILE) -o requirements/run.txt pyproject.toml
	# Only num2words' command line wants it, and there is no wheel of it: nothing is built at an installation.
	sed -i '/^docopt==/,/# via num2words/d' requirements/run.txt
	$(COMPILE) -o requirements/test.txt requirements/test.in
	$(COMPILE) -o requirements/clients.txt requirements/clients.in
	$(COMPILE) -o requirements/s3fs.txt requirements/s3fs.in

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
