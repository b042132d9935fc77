# Every target makes the virtual environment first, from the lock file; `make` alone lists the targets.
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
READY := .venv/.ready
# Or every worker of a test run would compile anew what it imports, where the environment asks for that.
export PYTHONDONTWRITEBYTECODE :=

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(READY) ## start everything, show one request from accept to charge, serve until Ctrl-C
	@$(PYTHON) -m deploy.local.run serve

up: $(READY) ## the same in the background; .local/env has the URLs and keys
	@$(PYTHON) -m deploy.local.run up

down: $(READY) ## stop what `make up` or `make run` started
	@$(PYTHON) -m deploy.local.run down

clean: $(READY) ## stop it and forget its databases, queues, logs and secrets
	@$(PYTHON) -m deploy.local.run clean

test: $(READY) ## all tests; starts its own servers and services; seven minutes on two cores, eleven on slow ones
	@$(PYTHON) -m pytest --numprocesses 4

test-unit: $(READY) ## only the tests that need no server
	@$(PYTHON) -m pytest tests/unit tests/architecture

lint: $(READY) ## style, format, and the import rules between the layers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports

chaos: $(READY) ## faults at random against a stack under load, then the counters; SEED=1 MINUTES=2
	@$(PYTHON) -m tests.chaos.run --seed $(or $(SEED),1) --minutes $(or $(MINUTES),2)

mutants: $(READY) ## break each promise by one line in a copy, and see its test go red
	@$(PYTHON) -m tests.mutants

bench: .venv/.ready-bench ## Parley beside a raw pipeline, and its costs counted; writes docs/benchmarks; about six minutes
	@$(PYTHON) -m bench raw group_commit $(BENCH)

bench-inflight: .venv/.ready-bench ## 2,000 provider calls in flight in one orchestrator, 2,000 polls in one gateway; about three minutes
	@$(PYTHON) -m bench in_flight $(BENCH)

bench-growth: .venv/.ready-bench ## the cost of a request at 1,000 and at 1,000,000 stored ones; about eight minutes, 10 GB
	@$(PYTHON) -m bench growth $(BENCH)

types: $(READY) ## mypy --strict
	@.venv/bin/mypy

openapi: $(READY) ## write openapi.json, asyncapi.yaml and docs/metrics.md from the code, PrometheusRule from the alerts
	@$(PYTHON) -m scripts.openapi
	@$(PYTHON) -m scripts.asyncapi
	@$(PYTHON) -m scripts.metrics
	@$(PYTHON) -m scripts.prometheus_rule

k8s: $(READY) ## render deploy/k8s and check it and the Dockerfile; needs kubectl or kustomize
	@sh deploy/k8s/check.sh

$(READY): pyproject.toml uv.lock deploy/local/bootstrap.sh
	@sh deploy/local/bootstrap.sh
	@touch $@

.venv/.ready-bench: $(READY)
	@sh deploy/local/bootstrap.sh --group bench
	@touch $@

.PHONY: help run up down clean test test-unit lint chaos mutants bench bench-inflight bench-growth types openapi k8s
