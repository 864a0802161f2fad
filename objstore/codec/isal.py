"""ISA-L through ctypes: zfec's bytes, 20 to 40 times faster.

The matrix is zfec's own, learned by encoding unit vectors with it; ISA-L only multiplies. It works in the
same field (polynomial 0x11d), so the bytes are the same: `backend` checks that before it trusts this module.

Two handles on one library: calls on small payloads keep the GIL (5 us of work are not worth losing it, since
getting it back from a busy loop takes up to a switch interval), large ones release it.

Source: isa-l `erasure_code.h`: ec_init_tables, ec_encode_data, gf_invert_matrix, gf_mul.
"""

import ctypes
import glob
import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache

import zfec

from objstore.codec.reed_solomon import Buffer, check_profile, choose_survivors, split

# Bytes of payload above which a call releases the GIL. At 10 GB/s and more this is under 30 us.
RELEASE_GIL_SIZE = 256 * 1024
TABLES_KEPT = 1024  # Loss patterns whose tables are kept: 32 * k * rows bytes each, a few KiB.

LIBRARY_NAMES = ("libisal.so.2", "libisal-pyeclib.so.2")


class IsalMissing(Exception):
    """No usable library on this machine. Only `backend` sees it."""


class _PyBuffer(ctypes.Structure):
    """Py_buffer of CPython's C API (stable since 3.3)."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


# Function objects of our own: setting types on `ctypes.pythonapi.X` would change it for every library.
_get_buffer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)(
    ("PyObject_GetBuffer", ctypes.pythonapi)
)
_release_buffer = ctypes.PYFUNCTYPE(None, ctypes.POINTER(_PyBuffer))(("PyBuffer_Release", ctypes.pythonapi))


def address_of(buffer: Buffer) -> int:
    """The address of a contiguous buffer's first byte; valid while the caller holds the buffer unresized."""
    view = _PyBuffer()
    _get_buffer(buffer, ctypes.byref(view), 0)
    address: int | None = view.buf
    _release_buffer(ctypes.byref(view))
    assert address is not None
    return address


class Library:
    """libisal, loaded twice: holding the GIL and releasing it."""

    def __init__(self, path: str) -> None:
        """Raises: IsalMissing."""
        self.path = path
        try:
            releasing = ctypes.CDLL(path)
            holding = ctypes.PyDLL(path)
            self.init_tables = holding.ec_init_tables
            self.invert = holding.gf_invert_matrix
            self.multiply = holding.gf_mul
            self.encode_holding = holding.ec_encode_data
            self.encode_releasing = releasing.ec_encode_data
        except (OSError, AttributeError) as failure:
            raise IsalMissing(f"{path}: {failure}") from failure
        size = ctypes.c_int
        pointer = ctypes.c_void_p
        self.init_tables.argtypes = [size, size, pointer, pointer]
        self.init_tables.restype = None
        self.invert.argtypes = [pointer, pointer, size]
        self.invert.restype = size
        self.multiply.argtypes = [ctypes.c_ubyte, ctypes.c_ubyte]
        self.multiply.restype = ctypes.c_ubyte
        for encode in (self.encode_holding, self.encode_releasing):
            encode.argtypes = [size, size, size, pointer, pointer, pointer]
            encode.restype = None


def find_library() -> Library:
    """The system's library, or the one that PyECLib's wheel bundles.

    Raises: IsalMissing, naming what was tried.
    """
    places = [LIBRARY_NAMES[0]]
    spec = importlib.util.find_spec("pyeclib")
    if spec is not None and spec.origin is not None:
        site = os.path.dirname(os.path.dirname(spec.origin))
        places += sorted(glob.glob(os.path.join(glob.escape(site), "pyeclib.libs", "libisal*.so*")))
    places.append(LIBRARY_NAMES[1])
    tried: list[str] = []
    for place in places:
        try:
            return Library(place)
        except IsalMissing as failure:
            tried.append(str(failure))
    raise IsalMissing("; ".join(tried))


def generator_matrix(k: int, m: int) -> list[bytes]:
    """zfec's k+m rows of k coefficients: row i says how fragment i comes from the data fragments.

    Data block j is the j-th unit vector, so byte j of fragment i is its coefficient for block j.
    """
    units = tuple(bytes(int(j == i) for i in range(k)) for j in range(k))
    rows: list[bytes] = [bytes(row) for row in zfec.Encoder(k, k + m).encode(units)]
    assert rows[:k] == list(units), "the code is not systematic"
    return rows


class IsalCodec:
    """See reed_solomon.Codec."""

    def __init__(self, library: Library, k: int, m: int) -> None:
        check_profile(k, m)
        self.k = k
        self.m = m
        self.inline_size_max = 16 * 1024 * 1024  # At 10 GB/s and more: one stripe stays under a millisecond.
        self._library = library
        self._matrix = generator_matrix(k, m)
        self._tables = self._make_tables(self._matrix[k:])
        self._tables_at = ctypes.addressof(self._tables)
        self._inputs = ctypes.c_void_p * k
        self._outputs = [ctypes.c_void_p * rows for rows in range(k + m + 1)]
        self._recover = lru_cache(maxsize=TABLES_KEPT)(self._recovery_tables)

    def encode(self, payload: Buffer) -> list[Buffer]:
        k = self.k
        data = split(payload, k)
        size = len(data[0])
        base = address_of(payload)
        whole = len(payload) // size
        addresses = [base + index * size for index in range(whole)]
        addresses += [address_of(data[index]) for index in range(whole, k)]
        return data + self._multiply(self._tables_at, addresses, self.m, size)

    def decode(self, fragments: Mapping[int, Buffer], fragment_size: int) -> list[Buffer]:
        k = self.k
        chosen = choose_survivors(fragments, k)
        assert all(len(fragments[index]) == fragment_size for index in chosen)
        if chosen[-1] < k:
            return [fragments[index] for index in chosen]
        missing = tuple(index for index in range(k) if index not in fragments)
        built = self._combine(chosen, missing, fragments, fragment_size)
        return [fragments[index] if index in fragments else built[index] for index in range(k)]

    def rebuild(self, fragments: Mapping[int, Buffer], wanted: Sequence[int]) -> dict[int, Buffer]:
        if not wanted:
            return {}
        chosen = choose_survivors(fragments, self.k)
        size = len(fragments[chosen[0]])
        assert all(len(fragments[index]) == size for index in chosen)
        return self._combine(chosen, tuple(wanted), fragments, size)

    def _combine(
        self, chosen: tuple[int, ...], wanted: tuple[int, ...], fragments: Mapping[int, Buffer], size: int
    ) -> dict[int, Buffer]:
        tables = self._recover(chosen, wanted)
        addresses = [address_of(fragments[index]) for index in chosen]
        built = self._multiply(ctypes.addressof(tables), addresses, len(wanted), size)
        return dict(zip(wanted, built, strict=True))

    def _multiply(self, tables_at: int, addresses: list[int], rows: int, size: int) -> list[Buffer]:
        """rows x k coefficients times k inputs of `size` bytes: one bytearray, returned as `rows` views."""
        out = bytearray(rows * size)
        base = ctypes.addressof(ctypes.c_char.from_buffer(out))
        encode = (
            self._library.encode_holding
            if size * self.k <= RELEASE_GIL_SIZE
            else self._library.encode_releasing
        )
        encode(
            size,
            self.k,
            rows,
            tables_at,
            self._inputs(*addresses),
            self._outputs[rows](*range(base, base + rows * size, size)),
        )
        view = memoryview(out)
        return [view[start : start + size] for start in range(0, rows * size, size)]

    def _make_tables(self, rows: Sequence[bytes]) -> "ctypes.Array[ctypes.c_char]":
        k = self.k
        coefficients = ctypes.create_string_buffer(b"".join(rows), k * len(rows))
        tables = ctypes.create_string_buffer(32 * k * len(rows))
        self._library.init_tables(k, len(rows), coefficients, tables)
        return tables

    def _recovery_tables(
        self, chosen: tuple[int, ...], wanted: tuple[int, ...]
    ) -> "ctypes.Array[ctypes.c_char]":
        """Tables that compute the fragments `wanted` from the fragments `chosen`.

        chosen = S x data, so data = S^-1 x chosen, and fragment w = G[w] x S^-1 x chosen.
        """
        k = self.k
        square = ctypes.create_string_buffer(b"".join(self._matrix[index] for index in chosen), k * k)
        inverse = ctypes.create_string_buffer(k * k)
        singular = self._library.invert(square, inverse, k)
        assert not singular, "any k rows of the code are independent"
        flat = inverse.raw
        inverse_rows = [flat[start : start + k] for start in range(0, k * k, k)]
        return self._make_tables([self._times(self._matrix[index], inverse_rows) for index in wanted])

    def _times(self, row: bytes, matrix: list[bytes]) -> bytes:
        multiply = self._library.multiply
        out = bytearray(self.k)
        for coefficient, other in zip(row, matrix, strict=True):
            if coefficient:
                for column, value in enumerate(other):
                    out[column] ^= multiply(coefficient, value)
        return bytes(out)
