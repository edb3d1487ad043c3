# Every target works on a fresh machine: it builds .venv by itself first (a few minutes, once).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_OPTIONS ?=

.PHONY: venv demo test check check-huggingface check-harness check-peers check-wheel bench tables report api notebook clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Echo needs Python 3.11 or later; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[dev]'
	touch $@

demo: venv
	$(BIN)/echo-ska demo

test: venv
	$(BIN)/python -m pytest

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py

# Hugging Face's own tests of models, which the source distribution of the installed transformers holds (about a minute).
check-huggingface: venv
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[huggingface]'
	rm -rf $(VENV)/huggingface && mkdir $(VENV)/huggingface
	$(BIN)/python -m pip download --quiet $(PIP_OPTIONS) --no-deps --no-binary transformers --dest $(VENV)/huggingface \
	  "transformers==$$($(BIN)/python -c 'import transformers; print(transformers.__version__)')"
	tar -xzf $(VENV)/huggingface/transformers-*.tar.gz -C $(VENV)/huggingface --strip-components=1
	ECHO_SKA_HUGGINGFACE_TESTS=$(VENV)/huggingface $(BIN)/python -m pytest tests/models/test_huggingface_suite.py \
	  tests/models/test_huggingface_tools.py

# The tests that skip without lm-evaluation-harness: its tasks, its text and its scores beside ours (about a minute).
check-harness: venv
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[eval]'
	$(BIN)/python -m pytest -rs tests/evaluation/test_lm_eval_tasks.py tests/evaluation/test_wikitext.py \
	  tests/commands/test_evaluate.py tests/experiments/language/test_zero_shot.py

# SKA's peers beside flash-linear-attention's definitions, on Linux (about half a minute); its kernels need a GPU.
check-peers: venv
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e '.[gpu]'
	$(BIN)/python -m pytest -rs tests/nn/peers tests/nn/test_adapters.py tests/nn/test_simple_gla.py

# The wheel, in a fresh environment without triton, from an empty folder (a few minutes, most of them installing).
WHEEL := build/wheel
check-wheel: venv
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)/empty
	$(BIN)/python -m build --wheel --no-isolation --outdir $(WHEEL) . >$(WHEEL)/log.txt || { cat $(WHEEL)/log.txt; exit 1; }
	$(BIN)/python -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt $(WHEEL)/*.whl
	$(WHEEL)/venv/bin/python -m pip uninstall --quiet --yes triton
	cd $(WHEEL)/empty && ../venv/bin/python -I $(CURDIR)/tests/installed_wheel.py
	rm -rf $(WHEEL)/venv

# About fifteen minutes on two CPU cores; `make tables` then writes docs/benchmarks.md anew from the record.
bench: venv
	$(BIN)/echo-ska bench --output results

# Write the tables in README.md and docs/ anew from results/.
tables: venv
	$(BIN)/python -m echo_ska.experiments.tables

# The API reference from the docstrings: build/api/index.html (about ten seconds).
api: venv
	$(BIN)/python docs/api/build.py build/api

# Run notebooks/tour.ipynb anew and keep its outputs (less than three minutes on two CPU cores).
notebook: venv
	$(BIN)/python notebooks/execute.py

# One page, report.html: every claim, and the verdict that the records in results/ give on it.
report: venv
	$(BIN)/echo-ska report

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
