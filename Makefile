# Everything starts here: `make demo`, `make test`, `make lint`.
#
#   PYTHON=python3.12      the interpreter to use, 3.10 to 3.13
#   TENSORFLOW=2.20.0      that release, in an environment of its own; nightly: the newest nightly
#   PYTEST_ARGS="-k plan"  more arguments for pytest
#   CUDA=ON                the CUDA kernels too, with NVIDIA's compiler from PyPI where there is none
#   DEVICE=gpu             what make bench measures
#   BENCH_ARGS="--quick"   other arguments for the benchmark
#   TORCH=torch            measures PyTorch too; any requirement that pip understands

PYTHON ?= python3
TENSORFLOW ?=
CUDA ?=
PYTEST_ARGS ?=
DEVICE ?= cpu
BENCH_RESULTS := benchmarks/results/$(DEVICE)
BENCH_ARGS ?= --json $(BENCH_RESULTS).json --report $(BENCH_RESULTS).md --plot $(BENCH_RESULTS).png
TORCH ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test gpu-check bench lint format wheel clean

help: ## say what there is
	@echo "make demo    install into .venvs/ from source and show what blocking a gradient does"
	@echo "make test    install into .venvs/ from source and run the test suite"
	@echo "make bench   measure beside stock TensorFlow, Keras, JAX and NumPy; half an hour and more"
	@echo "make bench DEVICE=gpu  the same on a GPU"
	@echo "make gpu-check  everything that needs a GPU, and one report of it"
	@echo "make lint    ruff, mypy and clang-format, each in the version that pyproject.toml names"
	@echo "make format  let ruff and clang-format rewrite what make lint complains about"
	@echo "make wheel   build a wheel in dist/ for the TensorFlow that make test uses"
	@echo "make clean   remove everything these made"
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter, TENSORFLOW=2.20.0 or nightly the TensorFlow."

# One environment for each interpreter and TensorFlow, so that switching back costs nothing.
python_tag := $(shell exec 2>/dev/null; $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
venv := .venvs/python$(python_tag)-tensorflow$(addprefix -,$(TENSORFLOW))$(if $(CUDA),-cuda)
# PyTorch is asked for, because on x86-64 Linux PyPI has it with CUDA only: several gigabytes.
on_device := $(addprefix -,$(filter-out cpu,$(DEVICE)))
bench_venv := $(venv)-bench$(on_device)$(if $(TORCH),-torch)
lint_venv := .venvs/lint
# The environment's bin on PATH, as if it were activated: an installer that builds in an environment
# of its own has no other way to find TensorFlow.
pip = PATH="$(CURDIR)/$(1)/bin:$$PATH" $(1)/bin/python -m pip --disable-pip-version-check install \
  --quiet

# `tensorflow-cpu` is a third of the download and exists for x86-64 Linux only. Of CUDA, TensorFlow
# brings only what it is asked for, and sees no GPU without the rest.
has_nvidia := $(wildcard /proc/driver/nvidia/version)
cpu_only := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),-cpu)
variant := $(if $(has_nvidia),[and-cuda],$(cpu_only))
ifeq ($(TENSORFLOW),)
tensorflow = tensorflow$(variant)$$($(PYTHON) backend/find_tensorflow.py --supported)
else ifeq ($(TENSORFLOW),nightly)
tensorflow = tf-nightly$(variant)
else
tensorflow = tensorflow$(variant)==$(TENSORFLOW)
endif

# A file newer than the installed package means: install it again.
sources := CMakeLists.txt pyproject.toml \
  $(shell find backend cmake csrc stopgrad_op -type f -not -name '*.pyc' 2>/dev/null)

# %/pip stands for an environment with a pip that knows dependency groups.
%/pip:
	@exec 3>&2 2>/dev/null; \
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "stopgrad_op needs Python 3.10 to 3.13; type: make $(MAKECMDGOALS) PYTHON=python3.12" >&3; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "this Python cannot make virtual environments; type:" \
	  "sudo apt-get install $(notdir $(PYTHON))-venv" >&2; exit 1; }
	@echo "==> making $(@D)"
	@$(PYTHON) -m venv --clear $(@D)
	@$(call pip,$(@D)) --upgrade 'pip>=25.1'
	@touch $@

$(venv)/tensorflow $(bench_venv)/tensorflow: %/tensorflow: | %/pip
	@echo "==> installing $(tensorflow)"
	@$(call pip,$(@D)) "$(tensorflow)"
	@touch $@

$(venv)/cuda: | $(venv)/pip
	@echo "==> installing what the CUDA kernels are built with"
	@$(PYTHON) backend/find_cuda.py --packages > $@.txt
	@$(call pip,$(venv)) --requirement $@.txt
	@touch $@

# Built in isolation, as `pip install .` does for everybody.
$(venv)/stopgrad_op: $(sources) | $(venv)/tensorflow $(if $(CUDA),$(venv)/cuda)
	@echo "==> building and installing stopgrad_op; this takes a few minutes"
	@$(if $(CUDA),STOPGRAD_CUDA=$(CUDA)) $(call pip,$(venv)) '.[demo,test]'
	@touch $@

$(bench_venv)/stopgrad_op: $(sources) | $(bench_venv)/tensorflow
	@echo "==> building and installing stopgrad_op, and what it is measured beside"
	@$(if $(on_device),STOPGRAD_CUDA=ON) $(call pip,$(bench_venv)) . --group bench$(on_device) \
	  $(if $(TORCH),"$(TORCH)")
	@touch $@

$(lint_venv)/linters: pyproject.toml | $(lint_venv)/pip
	@echo "==> installing the linters"
	@$(call pip,$(lint_venv)) --group lint
	@touch $@

demo: $(venv)/stopgrad_op
	@TF_CPP_MIN_LOG_LEVEL=2 $(venv)/bin/python -m stopgrad_op demo

# Not `python -m pytest`: that would put this folder before the installed package.
test: $(venv)/stopgrad_op
	TF_CPP_MIN_LOG_LEVEL=2 $(venv)/bin/pytest $(PYTEST_ARGS)

gpu-check: $(venv)/stopgrad_op
	TF_CPP_MIN_LOG_LEVEL=2 $(venv)/bin/python tools/gpu_check.py

bench: $(bench_venv)/stopgrad_op
	TF_CPP_MIN_LOG_LEVEL=2 $(bench_venv)/bin/python benchmarks/run.py --device $(DEVICE) \
	  $(BENCH_ARGS)

cpp_files = $(shell find csrc benchmarks tests/cuda -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')

lint: $(lint_venv)/linters
	$(lint_venv)/bin/ruff check
	$(lint_venv)/bin/ruff format --check
	$(lint_venv)/bin/mypy
	$(lint_venv)/bin/clang-format --dry-run -Werror $(cpp_files)

format: $(lint_venv)/linters
	$(lint_venv)/bin/ruff check --fix
	$(lint_venv)/bin/ruff format
	$(lint_venv)/bin/clang-format -i $(cpp_files)

wheel: $(venv)/tensorflow
	@$(venv)/bin/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf .venvs build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
