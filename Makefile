# make demo: from clone to picture.  make test: everything that must hold.  make check: lint, format and types.
# make docs: the site of docs/ in site/.  make lock: constraints.txt from pyproject.toml.
# make test-fast: the core, the contract of four model families and the command line, in about a minute.
# make test-settings: every test as other machines run it; ARGS="--only shift-16 -- tests/test_contract.py" for less.
# make test-comfyui COMFYUI=/path/to/ComfyUI: the nodes in a real ComfyUI.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)

FAST := $(addprefix tests/test_,guidance.py contract.py lifecycle.py bad_input.py prompt.py import.py cli.py)

.PHONY: demo test test-fast test-settings test-comfyui check lint format types docs lock clean

demo: $(VENV)/.base
	$(BIN)/vsf demo show --out demo.png
	$(BIN)/vsf demo show --model demo-flux --out demo-flux.png
	$(BIN)/vsf demo show --model demo-wan --out demo-wan.webp

test: check docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-fast: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not more" $(FAST)

test-settings: $(VENV)/.dev
	$(BIN)/python tests/settings.py $(or $(ARGS),-- -n $(WORKERS))

test-comfyui: $(VENV)/.comfyui
	@test -f "$(COMFYUI)/main.py" || { echo "give ComfyUI's folder: make test-comfyui COMFYUI=/path/to/ComfyUI"; exit 2; }
	$(BIN)/python tests/comfyui/needs.py "$(COMFYUI)"
	COMFYUI="$(abspath $(COMFYUI))" OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/comfyui

# The hooks of .pre-commit-config.yaml and the workflows call these three.
check: lint format types

lint: $(VENV)/.dev
	$(BIN)/ruff check .

format: $(VENV)/.dev
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright

# A broken link, or one to a place that a page does not have, is an error. Nothing is fetched.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Pins stay as they are unless one is in the way; make lock UPGRADE=--upgrade, or UPGRADE="-P diffusers", moves them.
# What torch's build for a GPU brings with it is left to that build.
lock: $(VENV)/.dev
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate $(UPGRADE) \
	  --custom-compile-command "make lock" -o constraints.txt pyproject.toml tests/comfyui/requirements.txt
	sed -i.old -E "/^(cuda-|nvidia-|triton)|== 'emscripten'/d" constraints.txt && rm constraints.txt.old

# torch first and alone, so that its choice of build (CPU, CUDA) is made by pip's own settings.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"the pinned packages need Python 3.11 or newer, this is {v.major}.{v.minor}; try: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

# pyright fetches its program at its first run: here, so that later runs need no network.
$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/pyright --version
	touch $@

# What every ComfyUI needs besides; what one version pins is in a folder of its own, see tests/comfyui/needs.py.
$(VENV)/.comfyui: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -r tests/comfyui/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps torchsde
	touch $@

clean:
	rm -rf $(VENV) build dist site demo.png demo-flux.png demo-wan.webp
