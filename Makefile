PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIN = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header $(UPGRADE)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book test test-book lint bench versions coverage mutation constraints clean

help:  ## Say what there is (the default)
	@sed -n 's/^\([a-z-]*\):.*## */make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

book: $(VENV)/installed-book  ## Execute the chapters and write the book to _build/html
	@$(BIN)/jupyter-book build . -W --keep-going || { rm -rf _build/.doctrees; exit 1; }

test: $(VENV)/installed-book,dev  ## Run the tests
	@$(BIN)/pytest --numprocesses auto --dist loadfile

test-book: $(VENV)/installed-book,dev book  ## Build the book and test what was built
	@$(BIN)/pytest -m book tests/test_built_book.py

lint: $(VENV)/installed-book,dev  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy lrp_jax

bench: $(VENV)/installed-book,dev  ## Time relevance as a ratio to the input gradient
	@cd tests/benchmarks && ../../$(BIN)/python relevance.py

versions: $(VENV)/installed-book,dev  ## Run the core's tests with the oldest and the newest jax and flax
	@$(BIN)/nox --session oldest newest

coverage: $(VENV)/installed-book,dev  ## Measure which lines and branches of lrp_jax the tests run
	@mkdir -p _build
	@$(BIN)/pytest --numprocesses auto --dist loadfile --cov --cov-report=term-missing --cov-report=json:_build/coverage.json
	@$(BIN)/python tests/adequacy/results.py coverage

mutation: $(VENV)/installed-book,dev  ## Change rules and operations in small ways, and see which tests notice
	@JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
		JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 $(BIN)/mutmut run
	@$(BIN)/python tests/adequacy/results.py mutation

constraints: $(VENV)/installed-book,dev  ## Pin what pyproject.toml asks for; UPGRADE=--upgrade takes the newest
	@$(PIN) --group build --extra book --output-file constraints.txt
	@$(PIN) --group build --all-extras --constraint constraints.txt --output-file constraints-dev.txt

clean:  ## Remove what was built, the environment included
	rm -rf _build .nox mutants $(VENV)

# The file `complete` is missing while pip works, so an interrupted environment is built anew. What is installed has the
# sha256 that the constraints name, the tools that build lrp_jax included.
$(VENV)/installed-book: REQUIREMENTS := constraints.txt
$(VENV)/installed-book,dev: REQUIREMENTS := constraints-dev.txt
$(VENV)/installed-%: pyproject.toml constraints.txt constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"lrp_jax needs Python 3.11 or newer as $(PYTHON). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@test -e $(VENV)/complete || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/complete
	@echo 'Installing lrp_jax[$*] into $(VENV), which takes about a minute ...'
	@$(BIN)/pip install --quiet --require-hashes -r $(REQUIREMENTS)
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(VENV)/complete $(VENV)/installed-book $@
