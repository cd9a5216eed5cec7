# `make up` runs the main job, `make test` passes the tests; both start from a bare machine with Python 3.11+.
SHELL := /bin/bash
STATE ?= .sprat
CONFIG ?= deployments/examples/laptop.yaml
SPRAT := .venv/bin/sprat --state $(STATE)
PYTEST := .venv/bin/python -m pytest

.PHONY: setup up down status lint types unit postgres contract integration e2e test clients prove-faults prove-endurance prove-clients prove-fuzz prove-models prove-fleet lock clean

setup:
	@./setup.sh

up: setup
	@$(SPRAT) up $(CONFIG)

down:
	@if [ -x .venv/bin/sprat ]; then $(SPRAT) down; else echo "Nothing is installed here, so nothing runs."; fi

status: setup
	@$(SPRAT) status

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: setup
	.venv/bin/mypy

unit: setup
	$(PYTEST) tests/unit tests/kernels tests/test_architecture.py tests/test_docs.py

postgres:
	@tests/install_postgres.sh

# The official SDKs and their like, in environments of their own.
clients: setup
	@tests/clients/install.sh

contract: setup postgres clients
	$(PYTEST) tests/contract tests/property

integration: setup
	$(PYTEST) tests/integration

# Real models through the real command line; fetches about 1.2 GB of weights the first time.
e2e: setup clients
	$(PYTEST) tests/e2e

# Fast ones first; the first failure stops the rest.
test: lint types unit contract integration e2e
	@echo "make test: all green"

# Every fault of the outage table on real servers, with a longer chaos run; about five minutes.
prove-faults: setup postgres
	SPRAT_CHAOS_SECONDS=60 $(PYTEST) tests/contract -m fault --ignore tests/contract/test_endurance.py \
		--fault-matrix tests/results/fault_matrix.json

# Redis away for 5 minutes, a soak of 30, and a client that leaves at every await point; about 40 minutes.
prove-endurance: setup
	SPRAT_TIMEOUTS_SECONDS=300 SPRAT_SOAK_SECONDS=1800 SPRAT_EVERY_AWAIT=1 \
		$(PYTEST) tests/contract/test_endurance.py --fault-matrix tests/results/endurance.json

# Every client on simulated engines and on the real models; about seven minutes.
prove-clients: setup clients
	rm -f tests/results/clients.json
	SPRAT_CLIENT_TABLE=tests/results/clients.json \
		$(PYTEST) tests/contract/test_clients.py tests/e2e/test_clients.py

# Hostile bytes against a whole gateway, and against h11 on the same bytes; 10,000 idle connections; about 10 minutes.
prove-fuzz: setup
	SPRAT_FUZZ_SECONDS=200 SPRAT_FUZZ_EXAMPLES=10000 SPRAT_IDLE_CONNECTIONS=10000 SPRAT_SLOW_READERS=500 \
		$(PYTEST) tests/contract/test_http_fuzz.py tests/contract/test_http_differential.py \
		tests/contract/test_http_many.py tests/contract/test_http_sockets.py \
		--fault-matrix tests/results/fuzz.json

# Adapters on several raylets: pinned, loaded, placed, lost, placed again, drained, with a log of what happened when;
# pools under a load that swings; about six minutes.
prove-fleet: setup
	SPRAT_FLEET_LOG=tests/results/fleet.json SPRAT_SINE_PERIODS=4 \
		$(PYTEST) tests/integration/test_adapter_fleet.py tests/integration/test_autoscaling.py

# Every family of the catalogue on a real replica, tiny or with its own weights; about 45 minutes, resumable.
prove-models: setup
	.venv/bin/python -m deployments.catalogue.prove

lock:
	./lock.sh

# The state folder stays: it holds API keys and money.
clean: down
	rm -rf .venv .venv-clients .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
