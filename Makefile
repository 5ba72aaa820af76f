# `make run` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= stories-box
TOKENIZER ?=
ARGS ?= -t 0.8 -s 42

.PHONY: run chat test test-bounds test-nojit coverage fuzz lint format bench docs setup model clean
.DELETE_ON_ERROR:

run: $(VENV)/installed ## tell a story with MODEL=path.bin (TOKENIZER=path, ARGS="-t 0.8 -n 256")
	@$(BIN)/python run.py "$(MODEL)" $(if $(TOKENIZER),-z "$(TOKENIZER)") $(ARGS)

chat: $(VENV)/installed ## talk with MODEL=path.bin; not with the model in the box, which only tells
	@$(BIN)/python run.py "$(MODEL)" $(if $(TOKENIZER),-z "$(TOKENIZER)") -m chat

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(ARGS_TEST)

# Indices out of range in a kernel read foreign memory in silence: here they are errors.
test-bounds: $(VENV)/installed-dev
	NUMBA_BOUNDSCHECK=1 LLAMA2NP_INT8=portable $(BIN)/python -m pytest $(ARGS_TEST)

test-nojit: $(VENV)/installed-dev ## the kernels as plain Python; what is too slow for it is skipped
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest $(ARGS_TEST)

# The second run is for what only works while kernels are compiled: it writes the vector code.
coverage: $(VENV)/installed-dev ## lines and branches, the kernels' too, and of child processes
	rm -f .coverage .coverage.*
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m coverage run -m pytest $(ARGS_TEST)
	NUMBA_CACHE_DIR=$(shell mktemp -d) $(BIN)/python -m coverage run -m pytest \
		tests/test_kernels.py tests/test_kernels_int8.py tests/test_threads.py tests/test_warmup.py
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

SECONDS ?= 60
fuzz: $(VENV)/installed-dev ## damaged files of every kind: make fuzz SECONDS=1800
	$(BIN)/python -m tools.fuzz $(SECONDS) $(ARGS_FUZZ)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.report $(ARGS_BENCH)

LENS := Once upon a time, there was a little girl named
LOOK := Tom had a dog. The dog liked Tom.
docs: $(VENV)/installed-docs ## run the notebooks, and draw the README's pictures
	@mkdir -p docs/images
	$(BIN)/llama2np lens stories-box -i "$(LENS)" -o docs/images/lens.png
	$(BIN)/llama2np attend stories-box -i "$(LOOK)" --layer 2 --head 3 -o docs/images/attention.png
	$(BIN)/python -m tools.notebooks

setup: $(VENV)/installed

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
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train]'
	$(BIN)/python -m tools.train

# Karpathy's TinyStories models, and the tokenizer they share with Llama 2.
stories15M.bin stories42M.bin stories110M.bin: | tokenizer.bin
stories15M.bin stories42M.bin stories110M.bin tokenizer.bin: | $(VENV)/installed
	$(BIN)/python -m tools.download $@

clean: ## compiled kernels, caches and .venv; never a model
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage .coverage.*
	find llama2np tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +
