# Chimera's single interface; `make` alone prints the help. Every target works on a fresh machine with python3
# (3.11 or later), git, make and a C compiler.
PYTHON ?= python3
BIN := .venv/bin
# Side by side, for some tests wait for processes; what takes long to import is for system tests only.
UNIT_TESTS := $(BIN)/pytest -q -n 4 --dist worksteal -m "not system" --ignore tests/system
# Two at a time, by files, whose tests have a Chimera in common: most of them wait more than they compute.
SYSTEM_TESTS := $(BIN)/pytest -m system -n 2 --dist loadfile --no-loadscope-reorder
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
        --custom-compile-command "make lock" pyproject.toml

# Python keeps what it compiled: without that each test process compiles everything anew, tests included.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run start-all stop-all status test-client test-gateway test test-faults test-gpu soak fuzz bench test-systemd install uninstall check format lock setup-run setup-dev ollama check-format check-types check-tests

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "; print "Chimera: Ollama on every GPU of this machine, behind one address\n"} \
	      /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2} \
	      END {print "\nSettings: .env.example. Commands: $(BIN)/chimera --help (after the first make run)."}' $(MAKEFILE_LIST)

run: setup-run ollama ## Everything needed, then supervisor and gateway in the foreground (Ctrl-C stops)
	@$(BIN)/chimera run

start-all: setup-run ollama ## The same in the background; returns when the fleet is ready
	@$(BIN)/chimera start

stop-all: setup-run ## Stop what start-all (or run) started
	@$(BIN)/chimera stop

status: setup-run ## Show the gateway, the primary, the workers and the GPUs
	@$(BIN)/chimera status

test-client: setup-run ## Try client.sh against the running gateway, command by command
	@eval "$$($(BIN)/chimera env)" && scripts/test_client.sh

test-gateway: setup-run ## Spawn workers, fire requests at once, show queueing and balance (ARGS="--help")
	@eval "$$($(BIN)/chimera env)" && $(BIN)/python scripts/test_gateway.py $(ARGS)

test: setup-dev ## Everything needed, then the whole test suite, real Ollama included
	@$(BIN)/python scripts/embedded.py install --force
	@$(UNIT_TESTS)
	@$(SYSTEM_TESTS)

test-faults: setup-dev ## Break a running Chimera in 30 ways under load; a table of what followed (ARGS="--help")
	@$(BIN)/python scripts/embedded.py install --force
	@$(BIN)/python scripts/test_faults.py $(ARGS)

test-gpu: setup-dev ## On a machine with NVIDIA GPUs: pinning, NVML, Xids, quarantine on the real card (ARGS="--help")
	@$(BIN)/python scripts/test_gpu.py $(ARGS)

soak: setup-dev ## 2,000 restarts in a row, then 64 idle workers: what they cost Chimera (ARGS="--help")
	@$(BIN)/python scripts/soak.py $(ARGS)

bench: setup-dev ## Chimera next to its peers (apt install haproxy nginx-light), in docs/bench (ARGS="--help")
	@$(BIN)/python scripts/embedded.py install --force
	@$(BIN)/python -m scripts.bench all $(ARGS)

fuzz: setup-dev ## Try parsers, the published document and the port with what nobody sends on purpose (ARGS="--help")
	@$(BIN)/python -m scripts.fuzz $(ARGS)

test-systemd: setup-dev ## Boot a real systemd in a container and try the service in it, as root (ARGS="--help")
	@$(BIN)/python scripts/embedded.py install --force
	@$(BIN)/python scripts/test_systemd.py $(ARGS)

install: ## As root: the systemd service, its user, /etc/chimera/chimera.env, and `chimera` on PATH
	@$(PYTHON) scripts/install.py install --python $$(command -v $(PYTHON))

uninstall: ## As root: take all of that away (KEEP=1 leaves settings, state with the models, and logs)
	@$(PYTHON) scripts/install.py uninstall $(if $(KEEP),--keep)

check: setup-dev ## Format, lint, types, unit tests: under a minute on two cores
	@$(MAKE) --no-print-directory -j 3 check-format check-types check-tests

check-format:
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .

check-types:
	@$(BIN)/mypy --no-error-summary

check-tests:
	@$(UNIT_TESTS) --hypothesis-profile=quick

format: setup-dev ## Format the code and fix what lint can fix
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

lock: setup-dev ## Write the lock files anew from pyproject.toml
	@$(LOCK) --upgrade --group build --output-file requirements/run.lock
	@$(LOCK) --upgrade --group dev --output-file requirements/dev.lock

setup-run:
	@$(PYTHON) scripts/bootstrap.py run

setup-dev:
	@$(PYTHON) scripts/bootstrap.py dev

ollama: setup-run
	@$(BIN)/python scripts/embedded.py install
