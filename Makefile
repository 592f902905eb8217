PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check test-slow test-gpu test-extras protocol-1 protocol-2 real atlas stickers chaos bench clean

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Make the virtual environment and install everything

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@

demo: $(STAMP) ## Make, verify and draw a set of 80 samples with the embedded models; prints the picture's path
	$(BIN)/factory generate --classes coco --n 80 --shard-size 20 --shards demo/set
	$(BIN)/factory verify demo/set
	$(BIN)/factory sheet demo/set --n 80 --out demo/sheet.png

test: $(STAMP) ## All tests that need no GPU and no patience
	$(BIN)/python -m pytest -m "not slow and not gpu and not extras"

check: $(STAMP) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(STAMP) ## The tests that take minutes
	$(BIN)/python -m pytest -m slow

protocol-1: $(STAMP) ## Grounders of both kinds on seen and unseen classes, on the embedded models; takes an hour or two
	$(BIN)/factory run jobs/protocol-1.yaml

real: $(STAMP) ## Grounders trained and measured on inverted labelled images; after protocol-2
	$(BIN)/factory run jobs/real.yaml

protocol-2: $(STAMP) ## Segmenters from synthetic sets beside labelled ones, on the embedded models; takes hours
	$(BIN)/factory run jobs/protocol-2.yaml

chaos: $(STAMP) ## Kill workers and drivers, break buckets, start two drivers, 20 times; resume, compare every byte
	$(BIN)/python tests/chaos.py --rounds 20

bench: $(STAMP) ## The figures of docs/performance.md; needs an otherwise idle machine
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/driver.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/end_to_end.py

test-gpu: $(STAMP) ## The tests on a GPU; they fail where there is none
	$(BIN)/python -m pytest -m gpu

test-extras: $(STAMP) ## The detectors of torchvision and detectron2; fails where they are not installed
	$(BIN)/python -m pytest -m extras

ICONS := build/icons
atlas: $(STAMP) ## Rebuild the sprite atlas from the icon sets' packages (needs npm)
	npm install --silent --prefix $(ICONS) @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 \
		@iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/emojione@1.2.3 @iconify-json/openmoji@1.2.29 \
		@iconify-json/noto-v1@1.2.5 @iconify-json/fluent-emoji@1.2.7 @iconify-json/emojione-v1@1.2.3 \
		@iconify-json/fxemoji@1.2.2 @iconify-json/streamline-emojis@1.2.4
	$(BIN)/python jobs/stickers/build_atlas.py --icons $(ICONS)/node_modules/@iconify-json

stickers: ## Tell how the sprites and the embedded models are rebuilt
	@echo "make atlas                                    # the sprite atlas (needs npm)"
	@echo "factory stickers train autoencoder --out runs"
	@echo "factory stickers train diffusion --out runs   # needs the autoencoder"
	@echo "factory stickers train detector --out runs"
	@echo "factory stickers evaluate --table docs/embedded.md"
	@echo "Training resumes after a kill; --device cuda uses a GPU. docs/embedded.md tells what was measured."

clean: ## Remove the environment and what is quickly made again; training runs in runs/ stay
	rm -rf $(VENV) demo build .mypy_cache .ruff_cache .pytest_cache
