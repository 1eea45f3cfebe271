"""Pages that commands write: whole HTML documents that load nothing."""
