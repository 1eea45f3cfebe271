"""What a daemon may log while faults are injected: that it refused something, and why. Never a traceback."""

from __future__ import annotations

from harness.mount import Mount


def forgive_refusals(mount: Mount) -> None:
    """Everything up to now that is a refusal or a warning is expected; errors and tracebacks still fail a test."""
    for line in mount.read_log():
        if line.is_json and line.level in ("DEBUG", "INFO", "WARNING") and "Traceback" not in line.text:
            line.declared = True


def refusals(mount: Mount) -> list[str]:
    """The refusals that were logged."""
    return [line.text for line in mount.read_log() if line.is_refusal]
