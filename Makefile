# Each target makes .venv and installs what it needs there; a second run installs only what has changed.
# Settings: make test PYTHON=python3.12   another interpreter (after make clean)
#           make test TORCH=              without PyTorch, in an environment of its own
#           make test JOBS=8 PYTEST_ARGS='-k max_pool -x'
#           make mutants MUTANTS=--python  only those that compile nothing
#           make fuzz FUZZ_SECONDS=600     other calls each time; SEED=… makes those of a seed again
#           make sanitize SANITIZERS=thread  only one of the two
.DEFAULT_GOAL := help
# Two pip runs at a time would break the environment; the compiler uses every core anyway.
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
DEMO ?= demo
JOBS ?= 2
PYTEST_ARGS ?=
MUTANTS ?=
FUZZ_SECONDS ?= 120
SEED ?=
PIP_FLAGS ?= --quiet

# The pin stands in pyproject.toml, once. Never a range: the newest build can be gigabytes of CUDA.
ifeq ($(origin TORCH),undefined)
TORCH := $(shell sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml | head -n 1)
ifeq ($(TORCH),)
$(error pyproject.toml pins no "torch==X.Y.Z"; say TORCH= to go without)
endif
endif
ifeq ($(strip $(TORCH)),)
VENV := .venv-without-torch
BUILD := build/without-torch
endif

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check $(PIP_FLAGS)
STAMPS := $(VENV)/stamps
HEADERS := $(VENV)/python-headers
NATIVE := $(wildcard src/native/*.hpp src/native/*.cpp)
# Folders are listed too: their time changes when a file comes or goes.
SOURCES := pyproject.toml CMakeLists.txt $(shell find src -name __pycache__ -prune -o -print)
SANITIZERS ?= address thread
# What this run says at the end about PyTorch.
TORCH_SAYS := $(if $(strip $(TORCH)),with $(TORCH),without PyTorch)

# Prints the requirements of one extra in pyproject.toml, or of the build ("build").
define REQUIREMENTS
import re, sys
toml = __import__("tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli", fromlist=["load"])
with open("pyproject.toml", "rb") as file:
    table = toml.load(file)
project, (extra, torch) = table["project"], sys.argv[1:]
def show(extra):
    for line in project["optional-dependencies"][extra]:
        inner = re.fullmatch(project["name"] + r"\[(.*)\]", line)
        if inner:
            for other in inner[1].split(","):
                show(other.strip())
        elif torch or not line.startswith("torch=="):
            print(line)
if extra == "build":
    print(*table["build-system"]["requires"], "cmake", "ninja", sep="\n")
else:
    show(extra)
endef
export REQUIREMENTS

# Says everything that is missing at once, in the words of the package manager.
define PREFLIGHT
if ! command -v $(PYTHON) >/dev/null; then
    echo "make: there is no $(PYTHON) here. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3"; exit 1
fi
if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "make: anypool needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=python3.12"; exit 1
fi
missing=
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"
command -v $(firstword $(CXX)) >/dev/null || missing="$$missing g++"
if [ -n "$$missing" ]; then
    echo "make: missing:$$missing. On Debian or Ubuntu: sudo apt install$$missing"; exit 1
fi
endef
export PREFLIGHT

.PHONY: help demo test lint format bench bench-all bench-quick conformance conformance-all docs mutants fuzz sanitize stress coverage clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: $(STAMPS)/extra-cli $(STAMPS)/package ## pool a photograph and draw what happened, into demo/
	@$(VENV)/bin/anypool demo --out $(DEMO) || { echo "make demo: FAILED, see above."; exit 1; }
	@echo
	@echo "make demo: done. The figures:"
	@find $(DEMO) -type f | sort | sed 's/^/  /'
	@echo "The command line is $(VENV)/bin/anypool; $(VENV)/bin/anypool info tells what it runs on."

test: $(STAMPS)/extra-test $(STAMPS)/extra-cli $(STAMPS)/package ## build, install and run every test
	@ANYPOOL_BUILD_DIR="$(CURDIR)/$(BUILD)/$$($(PY) -c 'import sys; print(sys.implementation.cache_tag)')" \
	$(PY) -m pytest -n $(JOBS) --junitxml=$(BUILD)/test-report.xml $(PYTEST_ARGS) || { status=$$?; echo; \
	  echo "make test: FAILED ($(TORCH_SAYS)). The failures are above and in $(BUILD)/test-report.xml."; \
	  echo "One test again: $(PY) -m pytest FILE::TEST"; exit $$status; }
	@echo
	@echo "make test: passed ($(TORCH_SAYS))."
	@echo "  tested   the package as users get it, installed in $(VENV)"
	@echo "  report   $(BUILD)/test-report.xml"
	@echo "  objects  $(BUILD)/ (kept: the next build compiles what changed)"

lint: $(STAMPS)/extra-dev $(STAMPS)/extra-cli $(STAMPS)/package ## ruff, mypy and clang-format; changes no file
	@failed=; \
	$(PY) -m ruff check . || failed="$$failed ruff-check"; \
	$(PY) -m ruff format --check . || failed="$$failed ruff-format"; \
	$(PY) -m mypy || failed="$$failed mypy"; \
	$(VENV)/bin/clang-format --dry-run --Werror $(NATIVE) || failed="$$failed clang-format"; \
	if [ -n "$$failed" ]; then echo "make lint: FAILED:$$failed. (make format mends the layout.)"; exit 1; fi
	@echo "make lint: passed (ruff check, ruff format, mypy, clang-format)."

format: $(STAMPS)/extra-dev ## rewrite the layout of the Python and C++ files
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix-only .
	$(VENV)/bin/clang-format -i $(NATIVE)

# The peers pull in a great deal, so they have an environment of their own: make test never installs them.
bench: ## measure against every peer and a copy, 25 minutes; writes docs/benchmarks.md
	@$(MAKE) --no-print-directory VENV=.venv-bench BUILD=build/bench bench-all

bench-all: $(STAMPS)/extra-bench $(STAMPS)/package
	$(PY) -m benchmarks --out docs/benchmarks.md
	$(PY) -m benchmarks.tokens --out docs/benchmarks.md
	@echo "make bench: done. The tables are in docs/benchmarks.md, the best known rows in README.md."

bench-quick: $(STAMPS)/extra-test $(STAMPS)/package ## measure a few rows against PyTorch and a copy, 2 minutes; writes nothing
	$(PY) -m benchmarks --quick

# Other frameworks, gigabytes of them, have an environment of their own, too. One that is missing is a failure.
conformance: ## compare with every framework there is, 10 minutes
	@$(MAKE) --no-print-directory VENV=.venv-conformance BUILD=build/conformance conformance-all

conformance-all: $(STAMPS)/extra-conformance $(STAMPS)/package
	@$(PY) -m pytest -n $(JOBS) --dist loadfile tests/conformance $(PYTEST_ARGS) || { echo "make conformance: FAILED, see above."; exit 1; }
	@echo "make conformance: passed: the results are those of PyTorch, ONNX, TensorFlow, Keras, Flax and SciPy."

# README.md is the front page; the links between the root and docs/ are turned to the one flat folder that a site is.
docs: $(STAMPS)/extra-docs ## build the site, strictly, into site/
	@rm -rf build/docs && mkdir -p build && cp -R docs build/docs && cp LICENSE build/docs/
	@for page in README.md CHANGELOG.md CONTRIBUTING.md docs/*.md; do \
	  sed -e 's#](docs/#](#g' -e 's#](\.\./#](#g' -e 's#="docs/#="#g' -e 's#](README\.md#](index.md#g' \
	    "$$page" > "build/docs/$$(basename "$$page" | sed 's/^README/index/')"; done
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict || { echo "make docs: FAILED, see above."; exit 1; }
	@echo "make docs: done. Open site/index.html."

mutants: $(STAMPS)/extra-test $(STAMPS)/extra-cli $(STAMPS)/package ## break the code on purpose; the tests must notice
	@$(PY) tests/mutants/run.py $(MUTANTS) || { echo "make mutants: FAILED, see above."; exit 1; }
	@echo "make mutants: passed: the tests noticed every one."

fuzz: $(STAMPS)/extra-test $(STAMPS)/package ## random and hostile calls of every function, FUZZ_SECONDS=120 of them
	@$(PY) tests/fuzz/fuzzer.py --seconds $(FUZZ_SECONDS) $(if $(SEED),--seed $(SEED)) \
	  || { echo "make fuzz: FAILED, see above."; exit 1; }
	@echo "make fuzz: passed."

stress: $(STAMPS)/extra-test $(STAMPS)/package ## what takes long or 8 GB of memory: arrays beyond 4 GiB
	@$(PY) -m pytest -m slow $(PYTEST_ARGS) || { echo "make stress: FAILED, see above."; exit 1; }
	@echo "make stress: passed."

sanitize: $(SANITIZERS:%=$(BUILD)/instrumented/%/stamp) ## the native core under its sanitizers, two builds, half an hour
	@failed=; for sanitizer in $(SANITIZERS); do \
	  JOBS=$(JOBS) $(PY) tests/sanitize/run.py $$sanitizer $(BUILD)/instrumented/$$sanitizer/site \
	    $(BUILD)/instrumented/$$sanitizer/reports || failed="$$failed $$sanitizer"; done; \
	if [ -n "$$failed" ]; then echo "make sanitize: FAILED:$$failed. What was said: $(BUILD)/instrumented/"; exit 1; fi
	@echo "make sanitize: passed: $(SANITIZERS)."

coverage: $(BUILD)/instrumented/coverage/stamp $(STAMPS)/extra-coverage ## lines and branches the tests reach, Python and C++
	@$(PY) tests/cover.py $(BUILD)/instrumented/coverage $(BUILD)/coverage -n $(JOBS) $(PYTEST_ARGS) \
	  || { echo "make coverage: FAILED, see above."; exit 1; }

clean: ## remove everything the other targets made, .venv too
	rm -rf .venv .venv-without-torch .venv-bench .venv-conformance build demo dist site wheelhouse .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment

$(STAMPS)/venv:
	@sh -c "$$PREFLIGHT"
	@echo "-- making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@mkdir -p $(STAMPS) $(BUILD) && touch $@

$(STAMPS)/extra-%: pyproject.toml | $(STAMPS)/venv
	@$(PY) -c "$$REQUIREMENTS" $* "$(TORCH)" > $@.txt
	@echo "-- installing what '$*' needs"
	@! grep -q '^torch' $@.txt || $(PIP) $(TORCH)
	@$(PIP) -r $@.txt
	@touch $@

# Debian's python3 comes without its C headers. Where they are missing, unpack them beside the build: that needs no root.
$(STAMPS)/headers: | $(STAMPS)/venv
	@if [ -e "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then : > $@; else \
	  version=$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); mkdir -p $(HEADERS); \
	  { (cd $(HEADERS) && apt-get download -qq libpython$$version-dev && dpkg-deb -x libpython$$version-dev_*.deb .) \
	    && [ -e $(HEADERS)/usr/include/python$$version/Python.h ]; } 2>$(HEADERS)/log \
	  || { echo "make: Python.h is missing. On Debian or Ubuntu: sudo apt install python3-dev"; exit 1; }; \
	  echo "$(CURDIR)/$(HEADERS)/usr/include/python$$version" > $@; fi

# Debian's headers, where Python has none; without pip's own throw-away build environment, in which every path would change
# and every file compile again.
define INSTALL
include=$$(cat $(STAMPS)/headers); \
[ -z "$$include" ] || export CPLUS_INCLUDE_PATH="$$(dirname $$include)"; \
$(PIP) --no-build-isolation $${include:+-C cmake.define.Python_INCLUDE_DIR=$$include}
endef

# Installed as users get it, not editable. The build folder is kept, and the build tools stay in the environment.
$(STAMPS)/package: $(SOURCES) $(STAMPS)/headers | $(STAMPS)/venv
	@$(PY) -c "$$REQUIREMENTS" build "$(TORCH)" > $@.txt
	@$(PIP) -r $@.txt
	@echo "-- building and installing anypool"
	@$(INSTALL) -C build-dir='$(BUILD)/{cache_tag}' .
	@touch $@

# The package again, built to watch itself, in a folder of its own to import it from. Threads do not care for instruction
# sets: the least is enough. Coverage is of the level that runs here: lines of the others are the same lines.
INSTRUMENT_address = address,undefined
LEVELS_thread = x86_64_v2
LEVELS_coverage = $(shell $(PY) -c "from anypool.backends import native; print(native.info()['isa'])")
$(BUILD)/instrumented/%/stamp: $(SOURCES) tests/sanitize/planted.cpp $(STAMPS)/extra-test $(STAMPS)/extra-cli $(STAMPS)/package
	@echo "-- building anypool for $* (minutes)"
	@rm -rf $(@D)/site
	@$(INSTALL) --no-deps --target $(@D)/site -C build-dir=$(@D)/objects -C install.strip=false \
	  -C cmake.define.ANYPOOL_INSTRUMENT='$(or $(INSTRUMENT_$*),$*)' \
	  $(if $(LEVELS_$*),-C cmake.define.ANYPOOL_LEVELS=$(LEVELS_$*)) .
	@touch $@
