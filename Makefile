PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIN = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header $(UPGRADE)

# What the tests compile is kept, so that a second run takes a third of the time.
CACHED := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
	JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book test test-book test-browser test-accessibility test-pdf test-notebooks test-doors pdf lab nightly lint \
	bench bench-peers bench-accelerator measure-composites measure-flipping measure-photographs measure-shattering \
	measure-relevance-models measure-tokens versions coverage mutation constraints clean

help:  ## Say what there is (the default)
	@sed -n 's/^\([a-z-]*\):.*## */make \1\t/p' $(MAKEFILE_LIST) | expand -t 25

book: $(VENV)/installed-book  ## Execute the chapters and write the book to _build/html
	@$(BIN)/jupyter-book build . -W --keep-going || { rm -rf _build/.doctrees; exit 1; }

test: $(VENV)/installed-book,dev  ## Run the tests
	@$(CACHED) $(BIN)/pytest --numprocesses auto --dist loadfile --durations=15

test-book: $(VENV)/installed-book,dev book  ## Build the book and test what was built
	@$(BIN)/pytest -rs -m book tests/book/test_built_book.py tests/book/test_draw.py tests/book/test_explore.py \
		tests/book/test_draggable_root.py

test-browser: $(VENV)/installed-book,dev book  ## Look at every page of the book in Chromium
	@$(BIN)/pytest -rs -m "browser and not accessibility" --numprocesses auto --dist loadgroup tests/book/test_browser.py

test-accessibility: $(VENV)/installed-book,dev book  ## Check every page of the book with axe: WCAG A and AA
	@$(BIN)/pytest -rs -m accessibility --numprocesses auto tests/book/test_browser.py

test-pdf: $(VENV)/installed-book,dev pdf  ## Print the book and test both PDF files
	@$(BIN)/pytest -rs -m browser tests/book/test_pdf.py

test-notebooks: $(VENV)/installed-book,dev book  ## Run every notebook of the book from top to bottom, outside of the repository
	@$(BIN)/pytest -rs -m notebooks tests/book/test_notebooks.py

nightly: $(VENV)/installed-book,dev  ## Run all cases of all tests, with 2000 random programs and networks
	@FUZZ_PROGRAMS=$${FUZZ_PROGRAMS:-2000} $(CACHED) $(BIN)/pytest --numprocesses auto --dist loadfile

pdf: $(VENV)/installed-book,dev book  ## Print the chapters to _build/book.pdf and all else to _build/reference.pdf, with Chromium
	@$(BIN)/python book/_pdf/print.py _build/html _build

lab: $(VENV)/installed-book,lab  ## Open the chapters in JupyterLab
	@$(BIN)/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json set-default-viewer
	@$(BIN)/jupyter lab --notebook-dir=book

lint: $(VENV)/installed-book,dev  ## Check style, format, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy lrp_jax book/lrp_book
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(VENV)/installed-book,dev  ## Time relevance as a ratio to the input gradient
	@cd tests/benchmarks && for program in relevance accuracy devices tasks; do ../../$(BIN)/python $$program.py || exit; done

measure-composites: $(VENV)/installed-book,dev  ## Measure what each composite keeps, how steady it is, and pixel flipping
	@cd tests/benchmarks && ../../$(BIN)/python composites.py

measure-flipping: $(VENV)/installed-book,dev  ## Flip pixels by every method on five networks (about 20 minutes)
	@cd tests/benchmarks && ../../$(BIN)/python flipping.py

measure-photographs: $(VENV)/installed-book,dev  ## Measure what biases decide on photographs, and gradients with many steps
	@cd tests/benchmarks && ../../$(BIN)/python photographs.py

measure-shattering: $(VENV)/installed-book,dev  ## Measure how fast gradients of random networks shatter with depth
	@cd tests/benchmarks && ../../$(BIN)/python shattering.py

measure-tokens: $(VENV)/installed-book,dev  ## Measure what flipping the tokens of eight transformers says of methods
	@cd tests/benchmarks && ../../$(BIN)/python token_flipping.py

measure-relevance-models: $(VENV)/installed-book,dev  ## Train detectors of digits, and measure models of their relevance
	@cd tests/benchmarks && ../../$(BIN)/python relevance_models.py

bench-peers: $(VENV)/installed-book,dev _build/peers/installed  ## Time relevance beside zennit, captum, autolrp and Quantus
	@cd tests/benchmarks && ../../$(BIN)/python peers.py --python ../../_build/peers/bin/python
	@cd tests/benchmarks && ../../$(BIN)/python tasks.py --python ../../_build/peers/bin/python
	@cd tests/benchmarks && ../../$(BIN)/python plot.py

bench-accelerator:  ## Time relevance on a GPU, in an environment of yours whose jax finds it
	@cd tests/benchmarks && $(PYTHON) accelerator.py

_build/peers/installed: tests/benchmarks/requirements-peers.txt
	@$(PYTHON) -m venv --clear _build/peers
	@_build/peers/bin/pip install --quiet -r $<
	@touch $@

# What is installed is the wheel of now, as users have it: the doors run in an empty folder, and find no source of ours.
test-doors: _build/doors/installed  ## Explain models of Keras, PyTorch, Equinox and Haiku, in an environment of their own
	@_build/doors/bin/pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	@_build/doors/bin/pytest -rs -m doors tests/doors

_build/doors/installed: constraints-doors.txt
	@$(PYTHON) -m venv --clear _build/doors
	@echo 'Installing torch, keras and others into _build/doors, which takes some minutes ...'
	@_build/doors/bin/pip install --quiet --no-deps --require-hashes -r $<
	@touch $@

versions: $(VENV)/installed-book,dev  ## Run the core's tests with the oldest and the newest jax and flax
	@$(BIN)/nox --session oldest newest

coverage: $(VENV)/installed-book,dev  ## Measure which lines and branches of lrp_jax the tests run
	@mkdir -p _build
	@$(BIN)/pytest --numprocesses auto --dist loadfile --cov --cov-report=term-missing --cov-report=json:_build/coverage.json
	@$(BIN)/python tests/adequacy/results.py coverage

# mutmut writes all mutants, notes which tests reach them, and stops, as none has this name.
mutation: $(VENV)/installed-book,dev  ## Change the code in small ways, and see which tests notice; MUTANTS=100
	@$(CACHED) $(BIN)/mutmut run none >/dev/null 2>&1 || test -e mutants/mutmut-stats.json
	@$(CACHED) $(BIN)/python tests/adequacy/mutants.py $${MUTANTS:-100}
	@$(BIN)/python tests/adequacy/results.py mutation

constraints: $(VENV)/installed-book,dev  ## Pin what pyproject.toml asks for; UPGRADE=--upgrade takes the newest
	@$(PIN) --group build --extra book --output-file constraints.txt
	@$(PIN) --group build --all-extras --constraint constraints.txt --output-file constraints-dev.txt
	@$(PIN) --group doors --output-file constraints-doors.txt

clean:  ## Remove what was built, the environment included
	rm -rf _build .nox mutants $(VENV)

# The file `complete` is missing while pip works, so an interrupted environment is built anew. What is installed has the
# sha256 that the constraints name, the tools that build lrp_jax included.
$(VENV)/installed-book: REQUIREMENTS := constraints.txt
$(VENV)/installed-book,dev: REQUIREMENTS := constraints-dev.txt
$(VENV)/installed-book,lab: REQUIREMENTS := constraints-dev.txt
$(VENV)/installed-%: pyproject.toml constraints.txt constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"lrp_jax needs Python 3.11 or newer as $(PYTHON). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@test -e $(VENV)/complete || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/complete
	@echo 'Installing lrp_jax[$*] into $(VENV), which takes about a minute ...'
	@$(BIN)/pip install --quiet --no-deps --require-hashes -r $(REQUIREMENTS)
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(VENV)/complete $(VENV)/installed-book $@
