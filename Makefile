# `make setup` needs Python >= 3.11 and the network once; the other targets call it when it is due.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# PYTHON=/path/to/python chooses the interpreter of a new environment.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14)
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

# Per cent of lines and branches together: of the whole package, and of each part of its core.
PACKAGE_FLOOR := 85
CORE_FLOOR := 95
CORE := src/agentcache/domain/* $(wildcard src/agentcache/service.py src/agentcache/loop.py)

.PHONY: help setup demo serve test stress soak lint types fmt bench bench-quick bench-core bench-resume bench-dropin bench-memory bench-compaction bench-canary bench-shapes fidelity constraints

help:
	@echo "setup         make $(VENV) with everything, pinned"
	@echo "demo          the demonstration"
	@echo "serve         the server, with the default model"
	@echo "test          all tests, with the coverage floors"
	@echo "stress        the stress tests in full size: many clients, kills, swaps, a full disk"
	@echo "soak          load for an hour; then kill a process 500 times (or ROUNDS)"
	@echo "lint          ruff and the import layers"
	@echo "types         mypy --strict"
	@echo "fmt           format, and mend what ruff can"
	@echo "bench         all benchmarks; writes docs/benchmarks.md (wants an hour and a quiet machine)"
	@echo "bench-quick   each of them in seconds, to see that it runs"
	@echo "bench-core    planner, lineage and pool alone, and the CPU time of a served token"
	@echo "bench-resume  the resume benchmark"
	@echo "bench-dropin  mlx_lm.server after its restart, with and without our prompt cache"
	@echo "bench-memory  what an agent takes in RAM and on disk, by codec"
	@echo "bench-compaction  restoring 200 turns: as a chain, merged, as one turn"
	@echo "bench-shapes  what it costs to come back, by kind of cache; writes docs/shapes.md"
	@echo "bench-canary  what it costs a resume to compare it with what was said before"
	@echo "bench-swap    another model in place of the one that is served, against loading it anew"
	@echo "fidelity      what each codec costs in quality; writes docs/fidelity.md"
	@echo "constraints   pin the newest releases into constraints.txt"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c 'import pip; $(SUITABLE)' >/dev/null 2>&1; then \
	    found=; \
	    for python in $(PYTHONS); do \
	        if "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "agentcache needs Python 3.11 or newer with its venv module; none of these is: $(PYTHONS)." >&2; \
	        echo "Install one (Debian, Ubuntu: also python3-venv), or name it: make setup PYTHON=/path/to/python3" >&2; \
	        exit 1; \
	    fi; \
	    echo "making $(VENV) with $$found"; \
	    "$$found" -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

serve: $(STAMP)
	$(BIN)/agentcache serve

test: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	    tests/e2e tests/integration tests/smoke tests/unit  # the long files first
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=$(PACKAGE_FLOOR)
	@set -f; for part in $(CORE); do \
	    printf '%s (%% covered, at least $(CORE_FLOOR)): ' "$$part"; \
	    $(BIN)/coverage report --format=total --include="$$part" --fail-under=$(CORE_FLOOR) || exit; \
	done
	$(BIN)/python -m pytest tests/stress

stress: $(STAMP)
	AGENTCACHE_TEST_SCALE=full $(BIN)/pytest tests/stress

soak: $(STAMP)
	AGENTCACHE_TEST_SCALE=soak $(BIN)/pytest tests/stress/test_sustained.py
	$(BIN)/python -m tests.stress.kill_loop --rounds $(or $(ROUNDS),500) --seed $(or $(SEED),1)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

bench-quick: $(STAMP)
	$(BIN)/python benchmarks/run.py --quick

bench-core: $(STAMP)
	$(BIN)/python benchmarks/core.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/idle_streams.py

bench-resume: $(STAMP)
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/resume.py --codec q8 --words 2300

bench-dropin: $(STAMP)
	$(BIN)/python benchmarks/dropin.py

bench-compaction: $(STAMP)
	$(BIN)/python benchmarks/compaction.py

bench-memory: $(STAMP)
	$(BIN)/python benchmarks/memory.py

bench-shapes: $(STAMP)
	$(BIN)/python benchmarks/shapes.py

bench-restore: $(STAMP)
	$(BIN)/python benchmarks/restore.py

bench-canary: $(STAMP)
	$(BIN)/python benchmarks/canary.py

bench-swap: $(STAMP)
	$(BIN)/python benchmarks/swap.py

fidelity: $(STAMP)
	$(BIN)/python benchmarks/fidelity.py

# mlx pulls in one of its platform packages; all are pinned to its version.
constraints: $(STAMP)
	$(BIN)/python -m venv --clear .cache/constraints
	.cache/constraints/bin/python -m pip install --quiet --upgrade pip
	.cache/constraints/bin/python -m pip install --quiet --editable '.[dev]'
	@.cache/constraints/bin/python -m pip freeze --exclude-editable >.cache/frozen.txt
	@for package in metal cpu cuda-12 cuda-13; do \
	    sed -n "s/^mlx==/mlx-$$package==/p" .cache/frozen.txt; \
	done >.cache/platform.txt
	@{ echo "# What agentcache[dev] was tested with. Made by: make constraints"; \
	    LC_ALL=C sort -fu .cache/frozen.txt .cache/platform.txt; } >constraints.txt
