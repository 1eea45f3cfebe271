"""`Reference`: how a person names something in a registry: `repo`, `repo:tag`, `repo@digest`. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from layerfs.errors import InvalidName, LayerTarSumVersionUnsupported
from layerfs.layername import LayerName, parse_layer_name
from layerfs.names import check_stored_repository_name, check_tag


class InvalidReference(InvalidName):
    """Text that names nothing: not `REPO`, `REPO:TAG` or `REPO@DIGEST`."""

    kind = "reference"


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository, and perhaps a tag or a digest in it. Where both are given the digest counts, as everywhere.

    A layer can also be named by its TarSum, as registries did in the beginning.
    """

    repository: str
    tag: str | None = None
    digest: LayerName | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """What `text` means. Raises `InvalidReference`, with the part that is wrong in it."""
        name, at, digest = text.partition("@")
        # A colon before the last slash is that of a host's port, which is no part of a name in storage.
        directory, slash, last = name.rpartition("/")
        last, colon, tag = last.partition(":")
        try:
            return cls(
                check_stored_repository_name(directory + slash + last),
                check_tag(tag) if colon else None,
                parse_layer_name(digest) if at else None,
            )
        except (InvalidName, LayerTarSumVersionUnsupported) as error:
            raise InvalidReference(text[:400], str(error)) from error

    @property
    def is_repository(self) -> bool:
        """Whether it names a repository as a whole."""
        return self.tag is None and self.digest is None

    def __str__(self) -> str:
        if self.digest is not None:
            return f"{self.repository}@{self.digest}"
        return self.repository if self.tag is None else f"{self.repository}:{self.tag}"
