# `make run` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= stories-box
TOKENIZER ?=
ARGS ?= -t 0.8 -s 42

.PHONY: help run chat test test-all test-bounds test-nojit coverage fuzz lint format bench docs setup model clean
.DELETE_ON_ERROR:

# Where pytest-xdist is there: four processes at most, and one more than processors, since tests wait, too.
WORKERS = $(shell $(BIN)/python -c 'import xdist; from llama2np.processors import processors; \
	print("--dist worksteal --numprocesses", min(4, processors() + 1))' 2>/dev/null)
PYTEST = $(BIN)/python -m pytest $(WORKERS)

run: $(VENV)/installed ## tell a story with MODEL=path.bin (TOKENIZER=path, ARGS="-t 0.8 -n 256")
	@$(BIN)/python run.py "$(MODEL)" $(if $(TOKENIZER),-z "$(TOKENIZER)") $(ARGS)

# The bundled model only tells stories: without a MODEL, chat downloads one (93 MB, Apache-2.0).
chat: $(VENV)/installed ## talk with SmolLM2, which it downloads first, or with MODEL=path
ifeq ($(origin MODEL), file)
	@$(BIN)/llama2np pull smollm2
	@$(BIN)/llama2np chat smollm2 --seed 42
else
	@$(BIN)/python run.py "$(MODEL)" $(if $(TOKENIZER),-z "$(TOKENIZER)") -m chat
endif

test: $(VENV)/installed-dev ## run the tests: make test ARGS_TEST="-k chat"
	$(PYTEST) $(ARGS_TEST)

test-all: $(VENV)/installed-dev ## run the tests with all random cases and all pairs of parameters
	LLAMA2NP_EXHAUSTIVE=1 $(PYTEST) $(ARGS_TEST)

# Indices out of range in a kernel read foreign memory in silence: here they are errors.
test-bounds: $(VENV)/installed-dev ## run the tests with every index in the kernels checked
	NUMBA_BOUNDSCHECK=1 LLAMA2NP_INT8=portable $(PYTEST) $(ARGS_TEST)

test-nojit: $(VENV)/installed-dev ## run the tests with the kernels as plain Python, except those that are too slow then
	NUMBA_DISABLE_JIT=1 $(PYTEST) $(ARGS_TEST)

# The second run is for what only works while kernels are compiled: it writes the vector code.
coverage: $(VENV)/installed-dev ## count the lines and branches that the tests run, in child processes too
	rm -f .coverage .coverage.*
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m coverage run -m pytest $(ARGS_TEST)
	NUMBA_CACHE_DIR=$(shell mktemp -d) $(BIN)/python -m coverage run -m pytest \
		tests/test_kernels.py tests/test_kernels_int8.py tests/test_threads.py tests/test_warmup.py
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

SECONDS ?= 60
fuzz: $(VENV)/installed-dev ## read damaged files of every kind: make fuzz SECONDS=1800
	$(BIN)/python -m tools.fuzz $(SECONDS) $(ARGS_FUZZ)

lint: $(VENV)/installed-dev ## check style and types: ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev ## format the source
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed ## measure speed again, for benchmarks/README.md
	$(BIN)/python -m benchmarks.report $(ARGS_BENCH)

LENS := Once upon a time, there was a little girl named
LOOK := Tom had a dog. The dog liked Tom.
docs: $(VENV)/installed-docs ## run the notebooks, and draw the README's pictures
	@mkdir -p docs/images
	$(BIN)/llama2np lens stories-box -i "$(LENS)" -o docs/images/lens.png
	$(BIN)/llama2np attend stories-box -i "$(LOOK)" --layer 2 --head 3 -o docs/images/attention.png
	$(BIN)/python -m tools.notebooks

setup: $(VENV)/installed ## make .venv with what the package needs

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, PYTHON=... names another than " + sys.executable)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

model: $(VENV)/installed ## tell stories and train a model on them, into build/box: about an hour on 2 cores
	$(BIN)/python -m tools.train

# Karpathy's TinyStories models, and the tokenizer they share with Llama 2.
stories15M.bin stories42M.bin stories110M.bin tokenizer.bin: | $(VENV)/installed ## fetch one of Karpathy's models, or the tokenizer
	$(BIN)/llama2np pull $@ --folder .

clean: ## remove compiled kernels, caches and .venv, never a model
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage .coverage.*
	find llama2np tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +

help: ## list these targets
	@awk -F':.*## ' '/^[a-z].*## / {printf "  %-12s  %s\n", $$1, $$2}' Makefile
