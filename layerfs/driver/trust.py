"""The certificates by which a server is trusted that a setting names."""

from __future__ import annotations

import ssl

from layerfs.errors import UnknownSource


def trusting(ca_file: str, *, setting: str, source: str) -> ssl.SSLContext:
    """For servers that `ca_file`, which `setting` names, trusts. Raises `UnknownSource` if that cannot be used.

    SDKs find that out with the first connection only, and take it for an error of the network.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise UnknownSource(source, f"{setting}={ca_file!r} cannot be used: {error.strerror}") from error
