# The habits. Each target makes its own environment in .venv from the pinned requirements; nothing else is needed than
# Python 3.11 or 3.12, git and make.
PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && python3.11 -c '' 2>/dev/null && echo python3.11 || \
            (command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12) || echo python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test test-exports check bench torture env docs clean

train: env          ## choose a preset and train it
	@$(BIN)/python main.py

test: env           ## all tests but the long ones
	@$(BIN)/python -m pytest -n auto

test-exports: .venv.exports/.ready .venv.transformers4/.ready  ## exports read by llama.cpp, mlx-lm, transformers 4
	@.venv.exports/bin/python -m pytest -m exports tests/export

check: env          ## lint, types, import contracts, stale docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m lmloop.preset.reference --check

torture: env        ## kill, corrupt and fill the disk many times over; writes docs/reliability.md's table
	@$(BIN)/python -m tests.torture

# Peers are taken from where NANOGPT, TEXT, CHATS and TRL_PYTHON say; ONLY names comparisons, ROUNDS repeats them.
bench: env          ## speed on this machine, beside the peers that are named
	@$(BIN)/python -m benchmarks $(if $(NANOGPT),--nanogpt '$(NANOGPT)') $(if $(TEXT),--text '$(TEXT)') \
	  $(if $(CHATS),--chats '$(CHATS)') $(if $(TRL_PYTHON),--trl-python '$(TRL_PYTHON)') \
	  $(if $(ONLY),--only '$(ONLY)') $(if $(ROUNDS),--rounds '$(ROUNDS)')

docs: env           ## write the generated documents anew
	$(BIN)/python -m lmloop.preset.reference

env: $(READY)       ## set up alone

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' || \
	  { echo "lmloop needs Python 3.11 or 3.12; '$(PYTHON)' is another version. Name one: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up .venv (once; about a minute, 1.5 GB) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

.venv.exports/.ready: requirements.txt requirements-exports.txt
	@echo "Setting up .venv.exports (once; llama.cpp is compiled, which takes minutes) ..."
	@$(PYTHON) -m venv .venv.exports
	@.venv.exports/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-exports.txt
	@touch $@

.venv.transformers4/.ready: requirements-transformers4.txt
	@echo "Setting up .venv.transformers4 (once) ..."
	@$(PYTHON) -m venv .venv.transformers4
	@.venv.transformers4/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-transformers4.txt
	@touch $@

clean:              ## remove the environment and the caches
	rm -rf .venv .venv.exports .venv.transformers4 .pytest_cache .ruff_cache .hypothesis build *.egg-info
