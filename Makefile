# make demo    set up, then run the default recipe: two and a half to four minutes on two cores, set-up apart
# make test    set up, then check all that a contribution must pass; `make check` is the same
# make typecheck-tensorrt   check what calls TensorRT under the type stubs of its versions, where they are; part of `make test`
# make format  mend what ruff can mend
#
# Packages are compiled when they are first imported: compiling all of them takes a minute, and most are never imported.
#
# Files of tests are handed out in the order of their folders: end_to_end, whose files last longest, comes first, so that no
# worker is left alone with one at the end.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= configs/digits.yaml
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt

.PHONY: demo test check typecheck-tensorrt format clean
.DELETE_ON_ERROR:

demo: $(VENV)/run.stamp
	$(BIN)/potstill run $(RECIPE)

test: check

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/python tests/typing/check_tensorrt.py
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

typecheck-tensorrt: $(VENV)/dev.stamp
	$(BIN)/python tests/typing/check_tensorrt.py

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Installed anew only when what is to be installed changes; the install is editable, so new code needs none.
$(VENV)/run.stamp: $(VENV)/made.stamp pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/made.stamp pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'potstill needs Python 3.11 or later: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
