"""Looking after a registry's storage: what is wrong with it, and uploads that nobody will finish. Usable without a CLI.

    registry = await Registry.open(open_driver("/var/lib/registry"))
    async for fault in check(registry, deep=True):
        print(fault.severity, fault.kind, fault.place, fault.explanation)
    async for upload in purge_uploads(registry, older_than=timedelta(days=7), dry_run=True):
        print(upload.repository, upload.upload, upload.age, upload.size)

Both may run beside registries and mounts that use the same storage.
"""

from layerfs.registry.maintenance.check import check
from layerfs.registry.maintenance.faults import Fault, FaultKind, Severity
from layerfs.registry.maintenance.progress import Progress
from layerfs.registry.maintenance.purge import FailedUpload, KeptUpload, PurgedUpload, purge_uploads

__all__ = [
    "FailedUpload",
    "Fault",
    "FaultKind",
    "KeptUpload",
    "Progress",
    "PurgedUpload",
    "Severity",
    "check",
    "purge_uploads",
]
