# Two commands do everything: make run, make test. Both make .venv first, with PYTHON (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
MINUTES ?= 10
OUT ?= results-gpu
DEVICE ?= cuda:0
SEED ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: run test quick chaos results-gpu check clean

run: .venv/ready  ## The 18 runs of the first study at smoke scale, and their report.
	$(BIN)/python cli.py enqueue --grid factorial --scale smoke --corpus bundled
	$(BIN)/python cli.py work
	$(BIN)/python cli.py report --study factorial-smoke > experiment_results.md
	@echo "report: $(CURDIR)/experiment_results.md"

test: check  ## Everything that must hold. Two at a time: much of it is waiting for leases and servers.
	$(BIN)/python -m pytest -n 2 --dist loadfile

quick: check  ## The inner loop: without the tests that take minutes.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

chaos: .venv/ready  ## A seeded storm of faults over a real study: make chaos MINUTES=10 SEED=1
	$(BIN)/python tests/chaos.py --minutes $(MINUTES) --seed $(SEED)

results-gpu: MINUTES = 25
results-gpu:  ## On one GPU: speed, determinism, factorial, factorial-long. In pieces: make results-gpu MINUTES=9
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/results_gpu.py --minutes $(MINUTES) --output $(OUT) \
		--device $(DEVICE) $(if $(TOKENIZER),--tokenizer $(TOKENIZER)) || [ $$? -eq 75 ]

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

clean:  ## Removes what is built; never jobs.db or runs/.
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
