# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up its own .venv and data first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') setup.py pyproject.toml

.PHONY: setup data demo test test-all mutants sanitize aarch64 check bench peers clean
setup: $(VENV)/.ready
data: .data/.ready

# torch first and pinned: an unpinned torch pulls gigabytes of CUDA.
$(VENV)/.packages: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q torch==2.13.0
	$(PY) -m pip install -q 'setuptools>=77' 'pybind11>=2.12'
	$(PY) -m pip install -q --no-build-isolation -e '.[dev,gpu,demo]'
	# Its images are all we want of foolbox; its dependencies are many.
	$(PY) -m pip install -q --no-deps foolbox==3.3.4
	touch $@

$(VENV)/.ready: $(VENV)/.packages $(SOURCES)
	$(PY) setup.py -q build_ext --inplace
	touch $@

.data/.ready: tools/fetch_data.sh
	bash tools/fetch_data.sh .data
	touch $@

demo: setup data
	$(PY) -m bench.demo

# A compiler without an extension is a failure here, though the package would run on without it.
test: setup data
	$(PY) -m pytest -m 'not slow'

test-all: setup data
	$(PY) -m pytest

# Breaks a copy of the project in the ways that tests/mutations.toml lists, and sees the tests go red.
mutants: setup data
	$(PY) tools/mutate.py

# The native tests and the kernels' tests with the compiler's sanitizers built in, and every shape between guard pages.
sanitize: setup data
	$(PY) tools/sanitize.py
	$(PY) tools/sanitize_kernels.py

# The portable kernels on aarch64: cross-built, run under an emulator, compared by bytes. `make test-all` has these tests too.
aarch64: setup
	$(PY) -m pytest tests/native/test_aarch64.py

check: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Kernels for regressions (compare with `pytest-benchmark compare`), then every suite; FLAGS=--quick or FLAGS=--peers go to these.
SUITES := limits fake_quantize gemm_s8 gemm_w4a8 conv_s8 network
bench: setup data
	$(PY) -m pytest bench/test_kernels.py --benchmark-autosave
	for suite in $(SUITES); do $(PY) -m bench.run $$suite $(FLAGS) || exit 1; done

# Other engines for `python -m bench.run SUITE --peers`.
peers: setup
	$(PY) -m pip install -q -r bench/peers.txt

clean:
	rm -rf $(VENV) build dist *.egg-info pyquant/*.so pyquant/*.fatbin
