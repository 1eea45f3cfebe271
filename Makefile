# Short names for what is in scripts/; a machine without make has the scripts.

.PHONY: setup demo test check bench soak clean

setup:
	scripts/setup --test

demo:
	scripts/demo

test:
	scripts/test

check:
	scripts/setup
	scripts/check

# Prints a table of ratios; fails only if a workload fails.
bench:
	scripts/setup --test
	.venv/bin/python -m tests.bench

# The long versions of the tests that kill, fill and race.
soak:
	scripts/setup --test
	.venv/bin/python -m pytest -m soak

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find layerfs tests -name __pycache__ -type d -prune -exec rm -rf {} +
