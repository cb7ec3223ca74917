# make demo   create .venv, install, and run the whole way on synthetic data
# make test   create .venv, install, and run the tests
# make lint   ruff format and check, mypy, codespell

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

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

clean:
	rm -rf .venv build *.egg-info
