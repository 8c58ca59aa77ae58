# The same few words for people and CI. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Where to take torch from, for a build without CUDA: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
ONCE ?=
QUICK ?=
RETRIEVAL ?=
UPGRADE ?=

# No file names a registry; an image takes wheels alone, each by its hash.
UV_LOCK := $(BIN)/uv pip compile -q $(if $(UPGRADE),--upgrade) --no-annotate --no-emit-index-url \
  --custom-compile-command "make lock"
IMAGE_LOCK := --generate-hashes --only-binary :all: \
  --python-version 3.12 --python-platform x86_64-manylinux_2_39
SBOM := $(BIN)/python -W ignore $(BIN)/cyclonedx-py
SBOM_OF := --pyproject pyproject.toml --output-reproducible
MINUTES ?=
SOAK := $(if $(QUICK),--quick) $(if $(MINUTES),--minutes $(MINUTES))

# Any installed version will do; where there is none, version 1 is made.
EMBEDDER := $(or $(firstword $(wildcard model_repository/embed/*/manifest.json)),model_repository/embed/1/manifest.json)
LLM := $(or $(firstword $(wildcard model_repository/generate/*/llm/manifest.json)),model_repository/generate/1/llm/manifest.json)

.PHONY: help install models run test lint types unit docs lock sbom bench bench-full soak precisions clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.dev ## make the environment in .venv, tools for development included

run: models ## set up what is missing, start the server, index the sample handbook, ask (ONCE=1: then stop)
	@$(BIN)/tritonrag demo $(if $(ONCE),--once)

models: $(EMBEDDER) $(LLM) ## export the default models into model_repository/ where there are none

test: $(VENV)/.dev models ## everything that CI runs: lint, types, and all tests on the real server
	@$(MAKE) --no-print-directory lint types
	@$(BIN)/python -m pytest

unit: $(VENV)/.dev ## the tests that need no server
	@$(BIN)/python -m pytest tests/unit tests/models tests/contract

lint: $(VENV)/.dev ## ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict; each model.py on its own, since all have one name
	@$(BIN)/mypy
	@for model in model_repository*/*/1/model.py; do $(BIN)/mypy $$model || exit 1; done

bench: $(VENV)/.run models ## search and rag at 1, 8 and 64 clients beside the in-process limit
	@$(BIN)/python perf/bench.py

bench-full: $(VENV)/.dev models ## the same beside other servers too, 25 minutes; a stopped run goes on (QUICK=1: a check)
	@$(BIN)/python perf/bench_full.py $(if $(QUICK),--quick)

soak: $(VENV)/.run models ## the long attacks: overload, 20 kills of each model, an hour of mixed load (MINUTES=5, QUICK=1)
	@$(BIN)/python perf/soak.py --overload $(SOAK)
	@$(BIN)/python perf/soak.py --kills 20 $(SOAK)
	@$(BIN)/python perf/soak.py $(SOAK)

precisions: $(VENV)/.run ## export both models in every precision: size, speed, parity (RETRIEVAL=folder in BEIR layout)
	@$(BIN)/python perf/precisions.py $(if $(RETRIEVAL),--retrieval $(RETRIEVAL))

docs: $(VENV)/.dev ## write docs/contract.md from the contract
	@$(BIN)/python docs/generate_contract.py

lock: $(VENV)/.dev ## bring constraints.txt and the images' locks up to pyproject.toml (UPGRADE=1: newest versions)
	@$(UV_LOCK) --python-version 3.11 --python-platform x86_64-manylinux_2_35 \
	  --all-extras pyproject.toml -o constraints.txt
	@$(UV_LOCK) $(IMAGE_LOCK) --constraint constraints.txt \
	  --extra serve --extra milvus --extra sources pyproject.toml -o deploy/container/requirements-cpu.txt
	@$(UV_LOCK) $(IMAGE_LOCK) --extra serve --extra milvus \
	  --no-emit-package faiss-cpu --no-emit-package onnxruntime --no-emit-package onnxruntime-genai \
	  pyproject.toml deploy/container/requirements-gpu.in -o deploy/container/requirements-gpu.txt
	@$(UV_LOCK) $(IMAGE_LOCK) deploy/container/requirements-build.in \
	  -o deploy/container/requirements-build.txt

sbom: $(VENV)/.dev ## list all that is installed here and in the images, as CycloneDX files in sbom/
	@mkdir -p sbom
	@$(SBOM) environment $(SBOM_OF) -o sbom/environment.json $(VENV)
	@for image in cpu gpu build; do \
	  $(SBOM) requirements $(SBOM_OF) -o sbom/image-$$image.json \
	    deploy/container/requirements-$$image.txt || exit 1; \
	done
	@ls sbom/*.json

clean: ## remove the environment, the exported models, the index and the server's state
	@-$(BIN)/tritonrag down 2>/dev/null
	rm -rf $(VENV) .tritonrag sbom index model_repository/embed/1 model_repository/generate/1/llm
	rm -rf model_repository/rerank/1/cross_encoder
	rm -rf model_repository/*/[2-9] model_repository/*/[1-9][0-9]* model_repository/*/live.json
	rm -f model_repository/*/configs/*live.pbtxt

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else \
	  "Python %d.%d is not supported; call make PYTHON=python3.11 (3.11 or 3.12)" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv here: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "installing the packages into $(VENV) (2 to 3 minutes the first time) …"
	@$(if $(TORCH_INDEX),$(PIP) install -q $$(grep '^torch==' constraints.txt) --index-url $(TORCH_INDEX))
	@$(PIP) install -q -c constraints.txt -e '.[embedded,export]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing the tools for development …"
	@$(PIP) install -q -c constraints.txt -e '.[embedded,export,dev]'
	@touch $@

# Order-only: what a user has exported is never replaced by a rebuild.
$(EMBEDDER): | $(VENV)/.run
	@$(BIN)/python export/embedder.py

$(LLM): | $(VENV)/.run
	@$(BIN)/python export/llm.py --precision fp32
