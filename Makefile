# `make help` lists the targets. Each installs what it needs into .venv by itself.

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-compare bench-accept soak clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## the main job on real and generated weights, step by step, in under 3 minutes
	@scripts/demo.sh

test: ## all checks and all tests (those marked root only when root)
	@scripts/test.sh

check: ## format, lint, types, layers of rooms
	@scripts/check.sh

bench: ## measure beside what is in use today, print tables, write bench/results/
	@scripts/bench.sh run

bench-compare: ## the last result beside the one before; fails where a figure became too much worse
	@scripts/bench.sh compare

bench-accept: ## each timing figure beside its bar; fails where one is not reached
	@scripts/bench.sh accept

soak: ## the long tests
	@scripts/test.sh --soak -m soak

clean: ## remove everything that the other targets made
	rm -rf .venv .demo .bench build dist bench/results .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
