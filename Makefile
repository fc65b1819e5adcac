# Two commands do everything: make run, make test. Both make .venv first, with PYTHON (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
MINUTES ?= 10
OUT ?= results-gpu
DEVICE ?= cuda:0
SEED ?= 1
PROPERTIES := tests/queue/test_queue_properties.py tests/queue/test_where.py tests/training/test_checkpoint.py
PYTEST = $(BIN)/python -m pytest -n 4 --dist worksteal
MACHINE ?= ATEN_CPU_CAPABILITY=default
export TOKENIZERS_PARALLELISM = false
# Where it is set, each of the tests' thousand processes compiles the project anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test quick numerical every-machine chaos results-gpu check clean

run: .venv/ready  ## The 18 runs of the first study at smoke scale, and their report.
	$(BIN)/python cli.py enqueue --grid factorial --scale smoke --corpus bundled
	$(BIN)/python cli.py work
	$(BIN)/python cli.py report --study factorial-smoke > experiment_results.md
	@echo "report: $(CURDIR)/experiment_results.md"

test: check  ## Everything that must hold. Four at a time: much of it is waiting for leases and servers.
	$(PYTEST)

quick: check  ## The inner loop: without the tests that start commands and servers, or take half a second.
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" -k "not postgresql"

numerical: .venv/ready  ## Bits and digits alone, as on another processor: make numerical MACHINE=ATEN_CPU_CAPABILITY=default
	env $(MACHINE) $(PYTEST) -m numerical

every-machine: .venv/ready  ## All tests with other instructions, on one core, and beside two busy loops. An hour.
	for machine in ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2; do \
		echo "== $$machine"; env $$machine $(PYTEST) || exit 1; done
	@echo "== one core"
	taskset -c 0 $(PYTEST)
	@echo "== beside two busy loops"
	for loop in 1 2; do timeout 3600 sh -c "while :; do :; done" & busy="$$busy $$!"; done; \
		$(PYTEST); code=$$?; kill $$busy; exit $$code

chaos: .venv/ready  ## A seeded storm of faults over a real study, then ten times the usual generated cases: make chaos MINUTES=10 SEED=1
	$(BIN)/python tests/chaos.py --minutes $(MINUTES) --seed $(SEED)
	$(BIN)/python -m pytest -q --hypothesis-profile=chaos --hypothesis-seed=$(SEED) $(PROPERTIES)

results-gpu: MINUTES = 25
results-gpu:  ## On one GPU: is it right, how fast, factorial, factorial-long. In pieces: make results-gpu MINUTES=9
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
