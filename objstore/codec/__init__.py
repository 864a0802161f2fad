"""The erasure code: bytes in, fragments out, and back. Knows no disk and no volume.

`backend.choose()` says which of two engines computes it: zfec, which defines the code, or ISA-L, which
gives the same bytes 20 to 40 times faster.
"""
