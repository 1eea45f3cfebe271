"""`python -m layerfs` is `layerfs`."""

from layerfs.cli import main

main()
