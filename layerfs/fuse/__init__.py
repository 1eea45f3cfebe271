"""pyfuse3 and nothing else: what the kernel says, told to `layerfs.view`, and back."""
