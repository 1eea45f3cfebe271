"""What is said where a package is missing that comes with an extra of layerfs."""

from __future__ import annotations

from layerfs.errors import UnknownSource


def missing_extra(scheme: str, extra: str, error: ImportError) -> UnknownSource:
    """The error to raise in place of `error`, with the command that installs the extra for URLs of the scheme."""
    return UnknownSource(
        f"{scheme}://", f"{_missing_module(error)} is not installed; run pip install 'layerfs[{extra}]'"
    )


def _missing_module(error: BaseException) -> str:
    """The libraries have reasons of their own for failing, with the module only in what these were made of."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ImportError) and seen.name:
            return seen.name
        seen = seen.__cause__ or seen.__context__
    return "a library for it"
