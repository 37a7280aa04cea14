# make demo       set up everything, train on handwritten digits, attack, write brittle-demo/report.html
# make test       set up everything, run the tests
# make test-levels  the tests at every instruction set (hours; not part of CI)
# make bench      print the ratios against peers and limits, write benchmarks/results/
# make lint       formatters, linters, types
# make gpu-check  on a machine with a GPU: build in place with its own python3, test, benchmark

PYTHON ?= python3
VENV ?= .venv
# Processes that share the tests, with one thread each.
JOBS ?= 2
RUN = $(VENV)/bin
SOURCES = $(shell find csrc tests/cuda_emulation -type f -not -name '*.so') CMakeLists.txt setup.py pyproject.toml
CXX_FILES = $(shell find csrc tests/cuda_emulation benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-levels bench lint format gpu-check clean

demo: $(VENV)/.built
	$(RUN)/python -m brittle demo

test: $(VENV)/.built $(VENV)/.peers
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-report=term $(ARGS)

# Every instruction set that torch and our kernels may meet. A compiled model of one is no use to another.
LEVELS = BRITTLE_SIMD=baseline BRITTLE_SIMD=v3 \
	ATEN_CPU_CAPABILITY=avx2,ONEDNN_MAX_CPU_ISA=AVX2,MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=2

test-levels: $(VENV)/.built $(VENV)/.peers
	@failed=; for level in $(LEVELS); do \
		cache=$$(mktemp -d); \
		echo "== $$level"; \
		env OMP_NUM_THREADS=1 TORCHINDUCTOR_CACHE_DIR=$$cache $$(echo $$level | tr , ' ') \
			$(RUN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS) || failed="$$failed $$level"; \
		rm -rf $$cache; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi; echo "all levels passed"

bench: $(VENV)/.built $(VENV)/.peers
	$(RUN)/python -m pytest benchmarks $(ARGS)

lint: $(VENV)/.built
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(RUN)/mypy

format: $(VENV)/.requirements
	$(RUN)/ruff check --fix
	$(RUN)/ruff format
	$(RUN)/clang-format -i $(CXX_FILES)

# No network there: python3 is taken with the torch (>= 2.10), pybind11 and pytest that it has.
gpu-check:
	$(PYTHON) -c "import torch; assert torch.cuda.is_available(), 'gpu-check needs a CUDA device'"
	BRITTLE_CUDA=ON CMAKE_ARGS="-DBRITTLE_TESTS=ON" $(PYTHON) setup.py -q build_ext --inplace
	PYTHONPATH=python $(PYTHON) -m pytest $(ARGS)
	PYTHONPATH=python $(PYTHON) -m pytest benchmarks -m gpu $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.requirements: requirements-dev.txt | $(VENV)/bin/python
	$(RUN)/python -m pip install -q -r requirements-dev.txt
	touch $@

$(VENV)/.peers: requirements-peers.txt $(VENV)/.requirements
	$(RUN)/python -m pip install -q --no-deps -r requirements-peers.txt
	touch $@

$(VENV)/.built: $(VENV)/.requirements $(SOURCES)
	CMAKE_ARGS="-DBRITTLE_TESTS=ON" $(RUN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build python/brittle/_native python/*.egg-info tests/cuda_emulation/*.so
