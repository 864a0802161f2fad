"""objstore: an S3-compatible object store for those who rent out capacity."""

__version__ = "0.1.0"

# Assertions carry invariants that guard acknowledged bytes; see ARCHITECTURE.md, law 11.
if not __debug__:  # pragma: no cover
    raise SystemExit("objstore: refuses to run under python -O; its assertions guard data")
