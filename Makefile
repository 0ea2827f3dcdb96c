# Two commands for a newcomer: `make demo`, `make test`.  Everything lives in .venv; nothing needs root.
PY   := .venv/bin/python
STAMP := .venv/.unitkit-ready
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: setup demo test test-slow check bench browser clean

setup: $(STAMP)  ## virtual environment with the tested set of packages (CPU torch where there is no GPU)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	bash tools/setup.sh .venv
	touch $@

demo: setup  ## encode, train a small vocoder, resynthesise, score, report: one HTML page
	OMP_NUM_THREADS=2 egs/prompts/demo/run.sh

test: setup  ## the whole suite but the slow tests
	$(PY) -m pytest -n 2 -m "not slow"

test-slow: setup  ## the slow tests
	$(PY) -m pytest -m slow --timeout=900

check: setup  ## lint, format, types
	$(PY) -m ruff check unitkit recipes tools tests
	$(PY) -m ruff format --check unitkit recipes tools tests
	$(PY) -m mypy

bench: setup  ## speed and memory, side by side with what people use today
	$(PY) tools/bench/run.py

browser:  ## headless Chromium for the report test (the one step that needs root)
	apt-get install -y --no-install-recommends chromium

clean:
	rm -rf .venv exp build *.egg-info
