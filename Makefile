# `make demo` and `make test` set themselves up: a virtual environment in .venv, installed from pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
DATA ?=
PHOTOS ?=
VIDEOS ?=
ARGS ?=
JOBS ?= 2
# Where this is set, each of the many processes that tests start would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.venv/.installed-demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[demo]'
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.installed-demo

demo: .venv/.installed-demo  ## train at 50, 75 and 95 % on built-in clips (or DATA=folder) and show it in runs/demo/SiamMAE.html
	$(BIN)/siammae demo $(if $(DATA),--data "$(DATA)")

test: .venv/.installed-dev  ## the tests that everybody runs, some minutes (JOBS=2: at once)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-long: .venv/.installed-dev  ## the long tests: notebooks, kills, many repeats
	$(BIN)/python -m pytest -q -m slow

gpu: .venv/.installed-dev  ## some 20 minutes on a GPU: measure training and evaluation (DATA=folder of DAVIS, VIDEOS=folder), run the tests that need one
	$(BIN)/python -m benchmarks.gpu_train --out runs/gpu $(if $(VIDEOS),--data "$(VIDEOS)")
	$(BIN)/python -m benchmarks.gpu_eval --out runs/gpu $(if $(DATA),--data "$(DATA)")
	$(BIN)/python -m pytest -q -m gpu

check-code: .venv/.installed-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: check-code test  ## format, lint, types, tests

format: .venv/.installed-dev  ## format the code and sort its imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

learn: .venv/.installed-demo  ## about an hour: train the micro preset on DATA=folder of videos and compare with copying
	@test -n "$(DATA)" || { echo 'learn: name a folder of videos: make learn DATA=path/to/videos'; exit 2; }
	$(BIN)/siammae learn --data "$(DATA)" $(ARGS)

zoo: .venv/.installed-demo  ## hours: train the models of checkpoints/ anew, from DATA=folder of videos and PHOTOS=folder of pictures
	@test -n "$(DATA)" -a -n "$(PHOTOS)" || { echo 'zoo: make zoo DATA=path/to/videos PHOTOS=path/to/pictures'; exit 2; }
	PATH="$(BIN):$$PATH" bash checkpoints/zoo.sh "$(DATA)" "$(PHOTOS)"

.PHONY: help demo test test-long gpu check check-code format learn zoo
