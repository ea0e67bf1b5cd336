# Everything runs in .venv; `make quickstart` and `make test` set it up themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
STORE := stores/shakespeare

# Bytecode is kept, and written as modules are imported: a training that a test starts would else spend
# seconds on compiling the source of all it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-fast lint format campaign clean help

help:
	@echo "make quickstart   install, then train a small model on Shakespeare (resumes after Ctrl-C)"
	@echo "make test         install the test tools, then run the whole suite"
	@echo "make test-fast    the suite without the tests marked slow"
	@echo "make lint         ruff and mypy"
	@echo "make campaign     further cases of the tests, and the long measurements with their tables"

quickstart: $(VENV)/installed
	$(BIN)/maxlm data tokenize --source sample:tinyshakespeare --tokenizer byte \
		--splits validation=0.1 --split-by position --output $(STORE)
	$(BIN)/maxlm train runs/quickstart

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-fast: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy maxlm

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

campaign: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --campaign
	$(BIN)/python tools/campaign.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable ".[test,lint]"
	touch $@ $(VENV)/installed
