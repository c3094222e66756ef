# make demo: from clone to picture.  make test: everything that must hold.  make check: lint and types.
# make test-comfyui COMFYUI=/path/to/ComfyUI: the nodes in a real ComfyUI.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-comfyui check clean

demo: $(VENV)/.base
	$(BIN)/vsf demo show --out demo.png

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-comfyui: $(VENV)/.comfyui
	@test -f "$(COMFYUI)/main.py" || { echo "give ComfyUI's folder: make test-comfyui COMFYUI=/path/to/ComfyUI"; exit 2; }
	COMFYUI="$(abspath $(COMFYUI))" OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/comfyui

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/pyright

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

# What ComfyUI needs besides; torchvision and torchaudio are replaced by stand-ins in the tests.
$(VENV)/.comfyui: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt aiohttp einops av sentencepiece alembic SQLAlchemy pydantic-settings trampoline comfyui-frontend-package==1.27.10
	$(BIN)/python -m pip install --quiet --no-deps torchsde
	touch $@

clean:
	rm -rf $(VENV) build dist demo.png
