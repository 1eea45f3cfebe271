"""Whether the content of an upload is what a digest says, before it gets that name.

Nobody else's word counts: an upload is called right by the running hash of the very version of the file that is going
to be published, else by reading it; and wrong only when all of it went through this process.
"""

from __future__ import annotations

import trio

from layerfs.digest import Digest
from layerfs.driver.interface import FileReader, SealedFile
from layerfs.errors import LayerInvalidDigest, LayerInvalidLength
from layerfs.layername import LayerName, Verifier
from layerfs.registry.hash_states import HashStates
from layerfs.registry.running_hash import READ_SIZE, Read, RunningHash


def check_size(expected: int | None, actual: int) -> None:
    """Raises `LayerInvalidLength` for another size than was expected, if any was."""
    if expected is not None and expected != actual:
        raise LayerInvalidLength(expected, actual)


async def verify_sealed(sealed: SealedFile, digest: LayerName, content_hash: RunningHash, states: HashStates) -> Digest:
    """The canonical digest of the sealed content, which is also `digest`. Goes on where a try was stopped.

    Raises `LayerInvalidDigest`, for a TarSum also `InvalidTar` or `LayerTarSumVersionUnsupported`.
    """
    if sealed.version is None or sealed.version != content_hash.version or content_hash.count > sealed.size:
        content_hash.resume(await states.find(sealed.size))
        content_hash.version = sealed.version
    await content_hash.read_all(sealed.size, sealed.read)
    if not content_hash.is_proven and content_hash.digest() != digest:
        # Before content is called wrong, or called by an alias, it is read.
        content_hash.begin_again()
        states.forget_stored()
        await content_hash.read_all(sealed.size, sealed.read)
    canonical = content_hash.digest()
    if not digest.is_canonical:
        await _verify_alias(digest, sealed.size, sealed.read, content_hash.limiter)
    elif canonical != digest:
        raise LayerInvalidDigest(digest, canonical, sealed.size)
    return canonical


async def verify_stored(stored: FileReader, canonical: Digest, digest: LayerName, content_hash: RunningHash) -> None:
    """Reads all of a stored blob, which must be `canonical` and `digest`. Raises as `verify_sealed`."""
    content_hash.begin_again()
    content_hash.version = None
    await content_hash.read_all(stored.size, stored.read)
    if content_hash.digest() != canonical:
        raise LayerInvalidDigest(canonical, content_hash.digest(), stored.size)
    # Not only by the word of `committing`: it may be of an earlier try, by another digest.
    if digest != canonical:
        await _verify_alias(digest, stored.size, stored.read, content_hash.limiter)


async def _verify_alias(digest: LayerName, size: int, read: Read, limiter: trio.CapacityLimiter) -> None:
    verifier = Verifier(digest)
    for offset in range(0, size, READ_SIZE):
        chunk = await read(offset, min(READ_SIZE, size - offset))
        await trio.to_thread.run_sync(verifier.update, chunk, limiter=limiter)
    # In a thread too: sorting the sums of a million files takes a while.
    actual = await trio.to_thread.run_sync(verifier.finish, limiter=limiter)
    if actual != digest:
        raise LayerInvalidDigest(digest, actual, size)
