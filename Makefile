# situ: build, install, try and test. `make help` lists the targets.
#
#   PG=18|17|16     the server version (default 18)
#   PG_CONFIG=...   the server that make install, uninstall and build are for (default: the pg_config on the PATH)
#   DESTDIR=...     make install and uninstall put this before every path, for packages
#   DEMO=full       the demo takes the whole manual
#   EVAL=quick       make eval takes a sample of each set
#   XRAG=quick       make eval-xrag takes a sample; more settings in scripts/eval_xrag.sh
#   SITU_CACHE, SITU_RUN, CARGO_TARGET_DIR: see scripts/common.sh

SHELL := /bin/bash
PG_CONFIG ?=
DESTDIR ?=
ifneq ($(filter install uninstall,$(MAKECMDGOALS)),)
ifeq ($(PG_CONFIG),)
PG_CONFIG := $(shell command -v pg_config)
endif
endif
ifneq ($(PG_CONFIG),)
PG := $(shell $(PG_CONFIG) --version 2>/dev/null | sed 's/[^0-9]*\([0-9]*\).*/\1/')
endif
export PG ?= 18
PROFILE ?= release
ARGS ?=

.PHONY: help demo stop clean-cluster deps server build install uninstall test test-units test-server test-docs reference test-load check kernels bench-index bench-encode bench-precision bench-service bench-gpu bench-llm bench-xrag eval eval-xrag bench-feedback clean

help:
	@echo 'make demo           build, start a private cluster, index the PostgreSQL manual, ask questions'
	@echo 'make stop           stop the cluster of the demo'
	@echo 'make clean-cluster  stop and remove it'
	@echo 'make deps           fetch what a build needs (apt, pip); with PG_CONFIG=... no server of its own'
	@echo 'make build          build the release library [PG_CONFIG=/path/to/pg_config]'
	@echo 'make install        build and install it, fetching nothing [PG_CONFIG=/path/to/pg_config] [DESTDIR=folder]'
	@echo 'make uninstall      remove what make install put there [PG_CONFIG=...] [DESTDIR=...]'
	@echo 'make test           all tests; make test-units, make test-server [ARGS=filter] for a part'
	@echo 'make test-docs      the examples of README.md and docs/*.md'
	@echo 'make reference      write docs/REFERENCE.md from the catalog'
	@echo 'make test-load      three minutes of load with accidents on the encoder service'
	@echo 'make check          what continuous integration runs'
	@echo 'make kernels        the CUDA kernels, compiled without a GPU for the supported architectures'
	@echo 'make bench-index    recall and queries per second beside pgvector HNSW'
	@echo 'make bench-encode   tokens per second beside ONNX Runtime, rten and candle'
	@echo 'make bench-feedback what a second round by feedback adds to the latency of a search'
	@echo 'make bench-precision nDCG of each precision of the kernels on the judged sets'
	@echo 'make bench-service  what the encoder service adds to the bare forward pass'
	@echo 'make bench-gpu      tests and measurements on a CUDA GPU, beside sentence-transformers'
	@echo 'make bench-llm      answers of a small LLM beside llama.cpp'
	@echo 'make bench-xrag     passages per second of the training of a projector for a small LLM'
	@echo 'make eval           every method on the judged sets: a table, metric lines, target/eval/index.html [EVAL=quick]'
	@echo 'make eval-xrag      a projector of xRAG, trained and judged in bits and in answers [XRAG=quick]'
	@echo 'make server         the checkout'"'"'s own copy of the server, with the development build installed'

demo:
	@scripts/demo.sh

stop:
	@scripts/cluster.sh stop

clean-cluster:
	@scripts/cluster.sh remove

# The demo, the tests and the benches fetch what else they need themselves.
deps:
	@scripts/deps.sh $(if $(PG_CONFIG),packages,build)

# Installs the development build, with the in-server tests, into the copy that the tests use; prints its pg_config.
server:
	@scripts/deps.sh build
	@library=$$(scripts/build.sh dev pg_test) && pg_config=$$(scripts/server.sh test) && \
		scripts/install.sh "$$library" "$$pg_config" >/dev/null && echo "$$pg_config"

build:
	@scripts/deps.sh missing '$(PG_CONFIG)'
	@if [ -n '$(PG_CONFIG)' ]; then export PGRX_PG_CONFIG_PATH='$(PG_CONFIG)'; fi; scripts/build.sh $(PROFILE)

# Nothing is fetched, and no user is made: the scripts that start servers do that.
install: export SITU_USER := $(shell id -un)
install:
	@scripts/deps.sh missing '$(PG_CONFIG)' install
	@export PGRX_PG_CONFIG_PATH='$(PG_CONFIG)'; library=$$(scripts/build.sh $(PROFILE)) && \
		DESTDIR='$(DESTDIR)' scripts/install.sh "$$library" '$(PG_CONFIG)' >/dev/null

uninstall:
	@DESTDIR='$(DESTDIR)' scripts/install.sh --uninstall '$(PG_CONFIG)' >/dev/null

test:
	@scripts/deps.sh check
	@scripts/test.sh all $(ARGS)

test-units:
	@scripts/test.sh units $(ARGS)

test-server:
	@scripts/deps.sh check
	@scripts/test.sh server $(ARGS)

test-docs:
	@scripts/deps.sh check
	@scripts/test.sh server docs:: $(ARGS)

reference:
	@scripts/deps.sh check
	@SITU_WRITE_REFERENCE=1 scripts/test.sh server reference:: $(ARGS)

test-load:
	@scripts/deps.sh check
	@SITU_LOAD_SECONDS=$${SITU_LOAD_SECONDS:-180} scripts/test.sh server load_with_accidents --nocapture

check:
	@.ci/run

kernels:
	@scripts/kernels.sh

bench-gpu:
	@scripts/gpu.sh all

bench-llm:
	@scripts/bench_llm.sh

bench-xrag:
	@scripts/bench_xrag.sh

eval:
	@scripts/eval.sh

eval-xrag:
	@scripts/eval_xrag.sh

bench-index:
	@scripts/bench.sh index

bench-feedback:
	@scripts/bench.sh feedback

bench-service:
	@scripts/bench.sh service

bench-encode:
	@scripts/bench_encode.sh

bench-precision:
	@scripts/bench_precision.sh

clean: clean-cluster
	cargo clean
