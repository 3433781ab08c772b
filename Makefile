# Two commands matter: `make demo` and `make test`. Both make .venv from the lock first, the demo with what it needs and no more.
# A version manager's python3.11 may be a name only, so python3 is tried after it.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.installed-for-demo
STAMP := $(VENV)/.installed
# More options of pip, such as PIP_OPTIONS='--index-url URL' for an index that has CPU builds of torch, which are much smaller.
PIP_OPTIONS ?=
comma := ,
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS)
PYTEST := $(BIN)/python -m pytest
# How many processes share the integration tests: two, each in a network of its own, where one can be made (Linux, root).
APART ?= $(shell tests/own_network true 2> /dev/null && echo 2 || echo 1)
SHARED = --dist loadfile --no-loadscope-reorder --tx "$(APART)*popen//python=$(CURDIR)/tests/own_network $(CURDIR)/$(BIN)/python"

.PHONY: demo test check types lint layering bench soak lock proto clean

demo: $(DEMO)
	@$(BIN)/python -m jobs.mlp.demo

test: check
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder --durations=10 $(ARGS) tests/unit || { [ $$? = 5 ] && [ -n "$(ARGS)" ]; }
	$(PYTEST) $(if $(filter-out 1,$(APART)),$(SHARED)) --durations=20 $(ARGS) tests/integration tests/faults || { [ $$? = 5 ] && [ -n "$(ARGS)" ]; }

# Beside each other: pyright has one thread, and takes longer with more.
check: $(STAMP)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target types lint layering

types: $(STAMP)
	$(BIN)/pyright

lint: $(STAMP)
	$(BIN)/ruff check .

layering: $(STAMP)
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/layering.py

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(ARGS)

soak: $(STAMP)
	$(BIN)/python -m tests.benchmarks --soak $(ARGS)

# Re-resolve every extra (needs uv); torch's own CUDA wheels are left to pip, see lock.txt.
lock:
	uv pip compile pyproject.toml --all-extras --python-version 3.11 --no-annotate --no-header \
	  | grep -vE '^(nvidia-|cuda-)' > lock.txt.new && { head -3 lock.txt; cat lock.txt.new; } > lock.txt.tmp && mv lock.txt.tmp lock.txt; rm -f lock.txt.new

# The messages of gRPC, for serving/protocols/open_inference_grpc.py.
proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -Iserving/protocols --descriptor_set_out=serving/protocols/open_inference.binpb \
	  serving/protocols/open_inference.proto

# Of the two, whichever is asked for first makes the environment, in one go.
define install
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(PIP) 'pip>=26.2.2'  # what makes a venv brings an older one
	$(PIP) -e '.[$(1)]' -c lock.txt
	@# so that `import trainyard` finds it beside a folder of that name too, such as that of the runs in a home folder
	@echo '$(CURDIR)' > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/trainyard-source.pth
endef

$(DEMO): pyproject.toml lock.txt
	$(call install,torch$(comma)serve)
	@touch $@

$(STAMP): pyproject.toml lock.txt
	$(call install,torch$(comma)transformer$(comma)four-bits$(comma)tensorflow$(comma)serve$(comma)dev)
	@touch $(DEMO) $@

clean:
	rm -rf $(VENV) build *.egg-info
