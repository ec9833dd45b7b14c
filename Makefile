# make help       this text
# make demo       train with and without label maps on handwritten digits: a
#                 table and figures in a few minutes; a trial run of a minute:
#                 make demo DEMO="--train 300 --val 100 --out FOLDER"
# make reproduce  the paper's comparison on the same images, nine rows of five
#                 seeds (about 40 minutes on 2 cores)
# make test       linters, type checks and the whole test suite
# make bench      the benchmarks that need no GPU (about 40 minutes on 2 cores)
# make bench-gpu  the benchmarks on a GPU (8 minutes with 16 cores)
# make bench-peers  install the libraries that benchmarks compare with
# make annotator  train the demo's teacher again (about 10 minutes on 2 cores)
# make clean      remove the environment and the demo's runs
#
# Each sets up .venv first if need be; make test PYTHON=python3.12 VENV=FOLDER
# chooses the interpreter and the folder. Training: python main.py --help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Left out: gpu, gpu_step and annotator, which need a GPU, soak, which takes half an hour, and public_networks, which
# needs photos of ImageNet.
BENCHMARKS := label_pooling label_store dataset_scale decoders input_path train_step data_wait

.PHONY: help demo reproduce test bench bench-gpu bench-peers annotator clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

demo: $(VENV)/installed
	$(BIN)/python -m relabel reproduce --rows 2 --seeds 1 $(DEMO)

reproduce: $(VENV)/installed
	$(BIN)/python -m relabel reproduce

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/installed
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --json runs/bench/$$name.json; done
	$(BIN)/python -m benchmarks.growth_plots --results runs/bench --out runs/bench/growth.png

bench-gpu: $(VENV)/installed
	$(BIN)/python -m benchmarks.gpu --json runs/bench/gpu.json

# Install the peers that benchmarks compare with, those that can be installed: see benchmarks/requirements.txt.
bench-peers: $(VENV)/installed
	grep -v '^#' benchmarks/requirements.txt | xargs -n 1 $(BIN)/python -m pip install --disable-pip-version-check || true

# Train the demo's teacher from scratch (about 10 minutes on 2 cores); the result is kept in configs/digits.
annotator: $(VENV)/installed
	$(BIN)/python -m relabel digits-annotator --out configs/digits/annotator.pth

# One resolver run for torch, torchvision and timm: installed one by one they may not fit each other.
$(VENV)/installed: requirements.txt tests/requirements.txt tests/requirements-teacher.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
		-r tests/requirements-teacher.txt
	touch $@

clean:
	rm -rf $(VENV) runs/digits runs/digits-annotator
