# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both create the environment they need in .venv (about ten minutes on two cores the first time,
# nearly all of it mmcv's operators being compiled).
PYTHON ?= python3.11
# The versions to run with: current, classic (torch 2.1) or onedl (the maintained forks). Each has an
# environment of its own: make test STACK=classic
STACK ?= current
# Another build of torch, e.g. for your CUDA: make demo TORCH="torch==2.13.0 --index-url URL"
ifeq ($(STACK),current)
VENV := .venv
TORCH ?= torch==2.13.0
MMCV ?= mmcv==2.1.0
else ifeq ($(STACK),classic)
VENV := .venv-classic
TORCH ?= torch==2.1.2 numpy==1.26.4
MMCV ?= mmcv==2.1.0
else ifeq ($(STACK),onedl)
VENV := .venv-onedl
TORCH ?= torch==2.13.0
MMCV ?= onedl-mmcv==2.3.6
else
$(error STACK is '$(STACK)', but must be current, classic or onedl)
endif
# What the stack replaces in requirements/tested.txt, and the names that it leaves out there.
OWN := $(wildcard requirements/$(STACK).txt)
LEFT_OUT := $(if $(filter onedl,$(STACK)),^mm,^$$)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
# pip keeps wheels that it built by their version alone, but one of mmcv fits a single torch.
MMCV_CACHE = --cache-dir "$${XDG_CACHE_HOME:-$$HOME/.cache}/calkd-det/torch-$$($(VENV)/bin/python -c 'import torch; print(torch.__version__)')"
READY := $(VENV)/.ready
ORACLES := $(VENV)/oracles

.PHONY: help demo study-smoke docs test tested test-quick test-gpu lint format env clean

help:
	@echo 'make demo   train a teacher and a student in four ways on the embedded data; report in work_dirs/demo'
	@echo 'make test   lint and run every test; STACK=classic or onedl takes other versions'
	@echo 'make tested  the same, and a row of its versions and outcomes for docs/install.md'
	@echo 'make test-quick  a third of the tests, in a minute or two'
	@echo 'make test-gpu  run the tests that need a CUDA device; name its torch by TORCH=...'
	@echo 'make study-smoke  a study of four cells in minutes; report in work_dirs/study-smoke'
	@echo 'make docs   build the site, strictly, into site/'
	@echo 'make env    only create the environment in $(VENV)'
	@echo 'make clean  remove the environment and all that was trained'

demo: $(READY)
	$(VENV)/bin/calkd demo

study-smoke: $(READY)
	$(VENV)/bin/calkd study configs/studies/smoke.py
	$(VENV)/bin/calkd study configs/studies/smoke.py --report

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

PYTEST = $(VENV)/bin/python -m pytest -m 'not oracle' --numprocesses auto --dist loadfile \
	--no-loadscope-reorder --junitxml=$(VENV)/tests.xml
PYTEST_ORACLES = TRITON_INTERPRET=1 $(ORACLES)/bin/python -m pytest -m oracle \
	--junitxml=$(VENV)/oracles.xml $$(grep -rl --include='test_*.py' mark.oracle tests)

# The independent implementations are compared with on the current versions only, beside the other
# tests. What that run says comes after theirs.
ifeq ($(STACK),current)
test: lint $(ORACLES)/.ready
	@$(PYTEST_ORACLES) > $(VENV)/oracles.log 2>&1 & oracles=$$!; \
	trap "kill $$oracles" INT TERM; \
	$(PYTEST); failed=$$?; \
	wait $$oracles || failed=1; \
	cat $(VENV)/oracles.log; exit $$failed
else
test: lint
	$(PYTEST)
endif

tested: test
	$(VENV)/bin/python tests/tested_versions.py $(STACK) $(VENV)/tests.xml \
		$(if $(filter current,$(STACK)),$(VENV)/oracles.xml)

# Losses, teachers, evaluators, hooks and the order of imports: for the loop while developing.
test-quick: $(READY)
	$(VENV)/bin/python -m pytest -m 'not slow and not oracle' --numprocesses auto --dist loadfile \
		tests/losses tests/teachers tests/evaluation tests/hooks tests/test_config.py \
		tests/test_layers.py tests/test_safe_loading.py tests/test_stack.py

test-gpu: $(READY)
	$(VENV)/bin/python -m pytest -m gpu

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

env: $(READY)

$(READY): requirements/tested.txt requirements/docs.txt $(OWN) setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "CalKD-Det is tested with Python 3.11; name it: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip 'setuptools>=77.0.3,<82' wheel ninja psutil
	$(PIP) install $(TORCH)
	grep -v '$(LEFT_OUT)' requirements/tested.txt > $(VENV)/tested.txt
	$(PIP) install --no-deps -r $(VENV)/tested.txt -r requirements/docs.txt
	$(if $(OWN),$(PIP) install --no-deps -r $(OWN))
	@echo 'Compiling the operators of mmcv, if pip has no wheel of them yet: about ten minutes'
	MMCV_WITH_OPS=1 $(PIP) install --no-deps --no-build-isolation --force-reinstall $(MMCV_CACHE) $(MMCV)
	$(PIP) install --no-deps --no-build-isolation --editable .
	cd / && '$(CURDIR)/$(VENV)/bin/python' -W ignore -c 'import calkd_det; print("CalKD-Det", calkd_det.__version__, "is ready")'
	@touch $@

$(ORACLES)/.ready: requirements/oracles.txt $(READY)
	$(VENV)/bin/python -m venv $(ORACLES)
	ls -d '$(CURDIR)'/$(VENV)/lib/python*/site-packages > $$(ls -d $(ORACLES)/lib/python*/site-packages)/main.pth
	$(ORACLES)/bin/python -m pip --disable-pip-version-check install --no-deps -r requirements/oracles.txt
	@touch $@

clean:
	rm -rf .venv .venv-classic .venv-onedl data work_dirs
