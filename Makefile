.DEFAULT_GOAL := help
.PHONY: help install test check format data bench clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:  ## make .venv with tuneplan (editable) and everything that the tests need
	python3 -m venv .venv
	.venv/bin/pip install -c constraints/test.txt -e '.[test,profile]'

test:  ## run the tests (make install first)
	.venv/bin/python -m pytest -n auto

check:  ## what CI runs: install, tests, format, lint, types, generated files up to date
	.ci/run

format:  ## format the code and fix what ruff can fix
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

data:  ## recompile hardware_profiles/index_*.json and schemas/ from the TOML and CSV files
	.venv/bin/python -m tuneplan.hardware_profiles.compile

bench:  ## run the benchmarks
	.venv/bin/python -m pytest benchmarks --benchmark-only

clean:  ## remove caches and build output, keep .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks src/*.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
