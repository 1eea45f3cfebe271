# Short names for what is in scripts/; a machine without make has the scripts.

.PHONY: setup demo test check bench soak stores man package clean

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
	scripts/setup --soak
	.venv/bin/python -m pytest -m soak

# The tests of mounts and registries again, with their storages on S3, Azure and Google Cloud Storage, as far
# as these run here: Ceph's gateway, Azurite and fake-gcs-server. Half an hour for each store, on two cores that had other
# work too; with pytest's `--stores s3` one of them runs.
stores:
	scripts/setup --test
	.venv/bin/python -m pytest -n auto --dist loadfile --stores s3,azure,gcs -m 'on_store and not soak'

# Manual pages, from the help of the commands: build/man/man1 and so on.
man:
	scripts/setup
	.venv/bin/layerfs manual build/man

# A wheel and a source distribution in dist/.
package:
	scripts/setup
	.venv/bin/python -m build

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find layerfs tests -name __pycache__ -type d -prune -exec rm -rf {} +
