# `make setup` makes .venv and installs through constraints.txt; every other target depends on it.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Stage processes with more threads than cores slow each other ten-fold (OpenMP spins), tests run several of them.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
PROMPT ?= a big red circle moving right on a blue background
OUT ?= demo.mp4

.PHONY: setup demo test check proto proto-baseline bench clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,dev]'
	touch $@

demo: setup
	$(BIN)/triptych generate "$(PROMPT)" --model examples/shapes/model --seed 1 -o $(OUT)

test: setup
	$(BIN)/python -m pytest tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against protos/released.binpb
	$(BIN)/python -m pytest tests/test_tidy.py

proto: setup
	$(BIN)/buf format -w
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. \
		--mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/triptych/v1/*.proto

# The contract that `make check` holds changes against. Renew it with a release, not with a change.
proto-baseline: setup
	$(BIN)/buf build --exclude-source-info -o protos/released.binpb

bench: setup
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV)
