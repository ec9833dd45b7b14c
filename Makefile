# make demo   the environment, then the main job on the embedded data: a table, pictures, and where they are
# make test   the environment, then linters, types and the whole test suite

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test annotator clean

demo: $(VENV)/installed
	$(BIN)/python -m relabel demo --out runs/demo

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# The demo's machine annotator from scratch (about 10 minutes on 2 cores); the result stands in configs/digits.
annotator: $(VENV)/installed
	$(BIN)/python -m relabel digits-annotator --out configs/digits/annotator.pth

# One resolver run for torch, torchvision and timm together: installed one by one they need not fit each other.
$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) runs/demo runs/digits-annotator
