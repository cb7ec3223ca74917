# make demo   create .venv, install, and run the whole way on synthetic data
# make test   create .venv, install, and run the tests
# make lint   ruff format and check, mypy, codespell
# make campaign   kill a few commands, damage a few inputs (python -m benchmarks.campaign is all of it)
# make docs   build the documentation strictly, into build/site

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint campaign docs clean

# torch and torchvision come in one step, so that they are a pair that works together.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	touch $@

demo: .venv/installed
	$(BIN)/raddraft demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

# The seed is fixed: a fault is one of the code.
campaign: .venv/installed
	$(BIN)/python -m benchmarks.campaign --kills 16 --inputs 1000 --seed 1 --only generate score compare weights read

# Without a network: the command reference comes from the code, and a warning is an error.
docs: .venv/installed
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --strict --clean

clean:
	rm -rf .venv build *.egg-info
