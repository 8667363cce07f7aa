# Everything that a person does with a clone. Each target makes .venv first if it is missing.
PYTHON ?= $(shell for v in 3.11 3.12; do command -v python$$v >/dev/null 2>&1 && python$$v -c '' 2>/dev/null && echo python$$v && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo-out

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-distributed test-slow lint format surface constraints bench clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "corrdiff needs Python 3.11 or 3.12, found $$($(PYTHON) --version); try make PYTHON=python3.12"; exit 2; }
	@start=$$(date +%s); \
	echo "installing into $(VENV) (about 6.5 GB, a few minutes)"; \
	$(PYTHON) -m venv $(VENV) \
	&& $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cluster,dev]' \
	&& touch $(STAMP) \
	&& echo "installation took $$(($$(date +%s) - start)) s"

install: $(STAMP)  ## Install into .venv.

demo: $(STAMP)  ## The whole road on sample pictures; results in demo-out.
	@$(BIN)/corrdiff demo --out $(OUT)

test: lint test-fast test-distributed  ## Lint, types, and all tests but the slow ones.

test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not distributed and not slow' --numprocesses logical --dist worksteal

test-distributed: $(STAMP)
	$(BIN)/python -m pytest -m 'distributed and not slow'

test-slow: $(STAMP)  ## The tests that make test has no time for.
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## ruff, mypy, import directions; YAML, workflows, the Dockerfile, shell scripts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck cluster/slurm/job.sh
	@$(BIN)/lint-imports > .lint-imports.log || { cat .lint-imports.log; exit 1; }; rm -f .lint-imports.log

format: $(STAMP)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## Print the benchmark tables (hours); CODEC=a trained codec for those of quality; PICTURES, HELD_OUT=folders for that of training.
	@for script in entropy_coding codec_speed metrics ingest faults memory train_step batch_compress planning finishing reading fuzz gpu; do $(BIN)/python -m benchmarks.$$script || exit 1; done
	@if [ -n "$(CODEC)" ]; then for script in factors tiles determinism; do \
		$(BIN)/python -m benchmarks.$$script --codec $(CODEC) || exit 1; done; fi
	@if [ -n "$(PICTURES)" ]; then $(BIN)/python -m benchmarks.training --pictures $(PICTURES) --held-out $(HELD_OUT); fi

surface: $(STAMP)  ## Renew tests/surface.txt and the dashboard, where options, columns or metrics are meant to change.
	@mkdir -p build
	$(BIN)/python -m tests.support.surface > build/surface.txt && mv build/surface.txt tests/surface.txt
	$(BIN)/python -m pipelines.tracking.dashboard > build/dashboard.json && mv build/dashboard.json cluster/monitoring/dashboard.json

constraints:  ## Renew constraints.txt with the newest versions that pyproject.toml allows (installs 6.5 GB, apart).
	rm -rf build/fresh && $(PYTHON) -m venv build/fresh
	build/fresh/bin/python -m pip install --quiet --disable-pip-version-check '.[aws,cluster,dev,gcp,perception]'
	build/fresh/bin/python -m pip freeze --all --exclude pip --exclude wheel --exclude corrdiff | LC_ALL=C sort -f > build/constraints.txt
	mv build/constraints.txt constraints.txt && rm -rf build/fresh

clean:  ## Remove the environment and everything that was built.
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis $(OUT)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
