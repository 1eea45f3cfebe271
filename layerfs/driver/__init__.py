"""Storage drivers: bytes at paths. Nothing in here knows what a registry is."""
