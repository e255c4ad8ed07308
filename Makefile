# Every command here needs only make and Python >= 3.11; the first run installs into .venv.
# ARGS is handed to the command: make demo ARGS=--once

VENV ?= .venv
ARGS ?=
# The first interpreter that is new enough, or nothing. PYTHON=/path/to/python3.13 chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; break; }; done)
BIN := $(VENV)/bin
# Empty is no: every worker would rewrite the asserts of all tests anew, 6 s of CPU each.
export PYTHONDONTWRITEBYTECODE :=
INSTALLED := $(VENV)/.installed
# One test more at once than there are cores, up to four, for many of them wait; a module's tests together and in order,
# since they share processes; the slow modules, which come first, begin first. A worker that ends, as after a timeout,
# ends the run.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null | awk '{ print ($$1 < 3) ? $$1 + 1 : 4 }')
SPREAD := -n $(or $(WORKERS),4) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: help install demo serve test lint format unit fuzz golden test-faults storm test-clients test-compose bench bench-streams bench-context soak lock \
	clean
.DEFAULT_GOAL := help

help: ## show these lines
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(INSTALLED) ## install Baton and its tools into .venv

$(INSTALLED): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Baton needs Python 3.11 or newer with the venv module." >&2; \
	  echo "Debian/Ubuntu: apt install python3 python3-venv   macOS: brew install python@3.13" >&2; \
	  echo "or name one: make PYTHON=/path/to/python3.13 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

demo: $(INSTALLED) ## three replicas, one killed in mid-stream, one conversation (ARGS=--once to exit at the end)
	$(BIN)/baton demo $(ARGS)

serve: $(INSTALLED) ## run for real; needs ANTHROPIC_API_KEY
	$(BIN)/baton serve $(ARGS)

test: lint unit ## everything that must pass before a commit

lint: $(INSTALLED) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo >/dev/null || $(BIN)/lint-imports

unit: $(INSTALLED) ## the tests, side by side (ARGS='-k commit' to choose, ARGS='-n 0' for one after the other)
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

format: $(INSTALLED) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-faults: $(INSTALLED) ## the failure matrix at length on one server, Sentinel and a cluster (FAULTS_TURNS=100 FAULTS_TOPOLOGY=all), and the store's whole suite on a cluster
	FAULTS_TURNS=$(or $(FAULTS_TURNS),100) FAULTS_TOPOLOGY=$(or $(FAULTS_TOPOLOGY),all) FAULTS_SEED=$(FAULTS_SEED) \
	  $(BIN)/python -m pytest $(SPREAD) -m "faults or at_length" --timeout 1800 -o faulthandler_timeout=0 $(ARGS)

fuzz: $(INSTALLED) ## many more requests made from /openapi.json, sound and bent (FUZZ_EXAMPLES=1000 FUZZ_SEED=1)
	FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),1000) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest --timeout 3600 \
	  -o faulthandler_timeout=0 -s tests/fuzz

golden: $(INSTALLED) ## play what goes over the wires anew into tests/golden, to be read as a diff (ARGS=tool to choose)
	$(BIN)/python -m tests.golden $(ARGS)

storm: $(INSTALLED) ## many more turns while replicas, connections and primaries go (STORM_TURNS=5000 STORM_TOPOLOGY=cluster)
	STORM_TURNS=$(or $(STORM_TURNS),5000) STORM_SEED=$(STORM_SEED) STORM_TOPOLOGY=$(STORM_TOPOLOGY) \
	  STORM_MINUTES=$(STORM_MINUTES) $(BIN)/python -m pytest -m storm -o faulthandler_timeout=0 -s tests/faults $(ARGS)

test-clients: $(INSTALLED) ## the clients people use already, against Baton; installs them into .clients (ARGS='-k claude')
	$(BIN)/python -m pytest -m clients -o faulthandler_timeout=0 tests/clients $(ARGS)

test-compose: $(INSTALLED) ## the image and docker-compose.yml in a real Docker engine: conversation, stop, paused store, rolling restart
	$(BIN)/python -m pytest -m compose --timeout 420 -o faulthandler_timeout=0 -s tests/deployment $(ARGS)

bench: $(INSTALLED) ## CPU per turn and per streamed event beside the floor, what translation adds, server time per script, costs at 100,000 sessions
	$(BIN)/python -m bench $(ARGS)

bench-streams: $(INSTALLED) ## a thousand paced streams at once on one core: how late events come (ARGS='--streams 500')
	$(BIN)/python -m bench.streams $(ARGS)

bench-context: $(INSTALLED) ## tokens of conversations of 30, 100 and 300 turns, by policy (ARGS='--turns 30')
	$(BIN)/python -m bench.context $(ARGS)

soak: $(INSTALLED) ## turns for minutes, then what they leave: memory, descriptors, connections, keys (MINUTES=5)
	$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),5) $(ARGS)

lock: ## renew requirements/*.txt from pyproject.toml, and the pins of the clients (needs uv and npm)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate pyproject.toml -o requirements/runtime.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate --extra demo --group dev pyproject.toml -o requirements/dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate --group build -o requirements/build.txt
	for name in frameworks openai litellm aider; do uv pip compile --quiet --universal --python-version 3.11 --upgrade \
	  --no-emit-index-url --no-header --no-annotate tests/clients/requirements/$$name.in \
	  -o tests/clients/requirements/$$name.txt || exit 1; done
	cd tests/clients/javascript && npm install --package-lock-only --omit-lockfile-registry-resolved

clean: ## remove what the commands above made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .clients build *.egg-info
