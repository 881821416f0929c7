# Each target sets up what it needs in .venv; no environment has to be active.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench small-data study parity scale chaos fuzz clean

demo: .venv/demo
	$(BIN)/python examples/elpv.py

# One process per core, one thread each.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

check: .venv/dev
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

parity: .venv/dev
	$(BIN)/python -m pytest -q tests/parity tests/weights tests/distillation tests/test_surprises.py -m ""

# Jobs of one to four processes, on CPUs: the same losses, kills, signals, lost hosts; and a week of 1,024 workers.
scale: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/training/test_processes.py tests/test_torchrun.py tests/test_launch.py -m ""
	$(BIN)/python benchmarks/scale_simulation.py --out results/scale/simulation.json

# An hour each: jobs that are killed and damaged, readers that are fed damaged files.
MINUTES ?= 60
chaos: .venv/dev
	$(BIN)/python benchmarks/chaos.py --minutes $(MINUTES) --out results/reliability/chaos.json

fuzz: .venv/dev
	$(BIN)/python benchmarks/fuzz.py --minutes $(MINUTES) --out results/reliability/fuzz.json
	$(BIN)/python benchmarks/fuzz_predict.py --out results/reliability/predict.json

# The training loop beside timm's, on a quiet machine.
bench: .venv/dev
	$(BIN)/python benchmarks/train_throughput.py

# Students against their baselines over three seeds; SIGNDIGITS is the folder of Sign Language Digits.
small-data: .venv/dev
	$(BIN)/python examples/elpv.py --only-data
	$(BIN)/python benchmarks/small_data.py --data runs/elpv-data/images --name elpv --epochs 12 recipe baseline
	$(BIN)/python benchmarks/small_data.py --data $(SIGNDIGITS) --name signdigits64 --split blocks --epochs 16 \
	  recipe baseline
	$(BIN)/python benchmarks/small_data.py --data $(SIGNDIGITS) --name signdigits64-scratch --split blocks \
	  --epochs 12 scratch "scratch, baseline"
	$(BIN)/python benchmarks/small_data_table.py

# A study of the paper on ELPV, from nothing, in half an hour on two cores.
study: .venv/dev
	$(BIN)/python examples/elpv.py --only-data
	$(BIN)/deitkit study distillation runs/elpv-data/images --out runs/study-distillation

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf .venv runs
