# Two commands: `make demo` sets everything up and asks about sample pictures,
# `make test` runs every check. Build output and fetched parts are kept in one
# cache directory outside the checkout, so that later clones start warm.

SHELL := /bin/bash
CACHE := $(or $(QBRIDGE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/qbridge)
export CARGO_TARGET_DIR ?= $(CACHE)/target
QBRIDGE := $(CARGO_TARGET_DIR)/release/qbridge
CARGO_FLAGS := --release --locked
# llama.cpp is built for this processor; with PORTABLE=1 for any that has AVX2.
ifndef PORTABLE
$(foreach feature,$(shell scripts/cpu-features.sh),$(eval export $(feature)))
endif

.PHONY: demo demo-bundle build setup test lint bench cuda-check

demo: build
	@bundle=$$(demo/bundle.sh $(QBRIDGE) $(CACHE) | tail -n 1) && demo/ask.sh $(QBRIDGE) "$$bundle" \
	  && printf '\nAsk your own:\n    %s ask %s PICTURE "what is this?"\n' $(QBRIDGE) "$$bundle"

# Prints the bundle's directory as the last line.
demo-bundle: build
	@demo/bundle.sh $(QBRIDGE) $(CACHE)

build: setup
	cargo build $(CARGO_FLAGS) --workspace

setup:
	@scripts/setup.sh

# qbridge beside transformers in PyTorch, ONNX Runtime and llama.cpp's bench program: raw runs and a table, in
# docs/performance. About 80 minutes on two cores, after what is fetched and built once; QUICK=1 takes minutes and
# writes to standard output. ROUNDS=7 for more rounds; BENCH_ARGS='--parts encode --subjects demo' for less;
# BENCH_PYTHON for a Python that has the peers already; LLAMA_BENCH for a program that is built already.
bench: build
	@bundle=$$(demo/bundle.sh $(QBRIDGE) $(CACHE) | tail -n 1) \
	  && packages="$(PYTHONPATH)" && llama="$(LLAMA_BENCH)" \
	  && if [ -z "$(BENCH_PYTHON)" ]; then packages=$$(scripts/pip-target.sh tests/bench/requirements.txt $(CACHE)); fi \
	  && if [ -z "$$llama" ] && [ -z "$(QUICK)" ]; then llama=$$(scripts/llama-bench.sh $(QBRIDGE) $(CACHE)); fi \
	  && PYTHONPATH="$$packages" $(or $(BENCH_PYTHON),python3) tests/bench/bench.py --qbridge $(QBRIDGE) \
	     --demo "$$bundle" --work $(CACHE)/bench $${llama:+--llama-bench "$$llama"} \
	     $(if $(QUICK),--quick) $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_ARGS)

# Compiles what runs on an NVIDIA GPU, without one and without a driver (docs/cuda.md). ggml's kernels take hours on two
# cores; CUDA_PACKAGE=qbridge-qformer compiles the vision side alone, candle's kernels among it.
cuda-check: setup
	@eval "$$(scripts/cuda-toolkit.sh $(CACHE))" && cargo check $(CARGO_FLAGS) -p $(or $(CUDA_PACKAGE),qbridge-cli) --features cuda \
	  --target-dir $(CACHE)/target-cuda

lint: setup
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings

# Unit, golden and end-to-end tests; the last run the built program, the demo
# bundle, OpenAI's clients for Python and (where it is there) Node, the page in
# a browser (where there is Chromium), and schemathesis. Published weights, where QBRIDGE_WEIGHTS
# names them, answer as their publishers' tests expect (docs/models.md).
test: lint build
	@scripts/setup.sh tests
	@bundle=$$(demo/bundle.sh $(QBRIDGE) $(CACHE) | tail -n 1) \
	  && client=$$(scripts/pip-target.sh tests/requirements.txt $(CACHE)) \
	  && node=$$(if command -v node >/dev/null && command -v npm >/dev/null; then scripts/npm-target.sh tests/node $(CACHE) | tail -n 1; fi) \
	  && QBRIDGE_NODE_CLIENT="$$node" QBRIDGE_BIN=$(QBRIDGE) QBRIDGE_DEMO_BUNDLE="$$bundle" PYTHONPATH="$$client" \
	     cargo test $(CARGO_FLAGS) --workspace
	@if [ -n "$(QBRIDGE_WEIGHTS)" ]; then QBRIDGE_BIN=$(QBRIDGE) \
	     cargo test $(CARGO_FLAGS) --workspace --test published -- --ignored --nocapture --test-threads 1; \
	else echo "SKIPPED: the answers of published weights; QBRIDGE_WEIGHTS is not set (docs/models.md)"; fi
