"""Archives whose TarSums were computed by docker's own package: the fixture's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Final

VECTORS: Final = Path(__file__).resolve().parents[3] / "shared/fixtures/tarsum-vectors"

#: As they stand before the `+`: version 0 has none.
LABELS: Final = ("tarsum", "tarsum.v1", "tarsum.dev")

#: What nobody has computed: the TarSum of no archive.
WRONG: Final = "tarsum.v1+sha256:" + "0123456789abcdef" * 4

_ROWS: Final = [line.split("\t") for line in (VECTORS / "vectors.tsv").read_text().splitlines()]


def archive(name: str) -> bytes:
    """The bytes of a vector, `types.tar` for one."""
    return (VECTORS / name).read_bytes()


def tarsum_of(name: str, label: str = "tarsum.v1") -> str:
    """The TarSum of a vector, in full."""
    (result,) = [row[2] for row in _ROWS if row[:2] == [name, label]]
    assert not result.startswith("ERROR"), f"{name} has no TarSum"
    return result
