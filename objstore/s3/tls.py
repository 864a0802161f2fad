"""TLS for a port, with certificates that are renewed without a restart.

One SSLContext lives as long as the process; a renewed certificate is loaded into it, so that connections made
from then on use it, while open ones go on. New files are first loaded into a context of their own: a
half-written file or a key of another certificate never replaces what works.

Concurrency: `watch` is one task of the event loop; files are read in a thread.
"""

import asyncio
import logging
import os
import ssl
from pathlib import Path

from cryptography import x509

_log = logging.getLogger("objstore.s3")

WATCH_SECONDS = 5.0


class TlsFailure(Exception):
    """The certificate or key cannot be used. The message names the file and the reason."""


class Certificate:
    """A certificate chain and its key in two PEM files, and the context that serves them.

    Raises: TlsFailure, when the files cannot be used at the start.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate = certificate
        self.key = key
        self.reloads = 0
        self.failures = 0  # Of reloading: the certificate before goes on being served.
        self._stamp = self._read_stamp()
        self.not_after = self._probe()  # Seconds since 1970.
        self.context = _server_context()
        self.context.load_cert_chain(certificate, key)

    def reload(self) -> bool:
        """Take up the files as they are now. Returns: whether that worked. Blocks on file reads."""
        try:
            not_after = self._probe()
            self.context.load_cert_chain(self.certificate, self.key)
        except (TlsFailure, OSError) as failure:
            self.failures += 1
            _log.warning("the renewed certificate is not taken up: %s", failure)
            return False
        self.not_after = not_after
        self.reloads += 1
        _log.info("certificate %s taken up", self.certificate)
        return True

    def reload_if_changed(self) -> bool:
        """Whether the files had changed and were taken up. A change that fails waits for the next change."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        return self.reload()

    async def watch(self, every_seconds: float = WATCH_SECONDS) -> None:
        """Look at the files for ever. Run it as a task; cancel it to end."""
        while True:
            await asyncio.sleep(every_seconds)
            await asyncio.to_thread(self.reload_if_changed)

    def _read_stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes with the files' content, also behind symbolic links. (0, 0, 0) while a file is missing."""
        stamps = []
        for path in (self.certificate, self.key):
            try:
                found = os.stat(path)
                stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
            except OSError:
                stamps.append((0, 0, 0))
        return tuple(stamps)

    def _probe(self) -> float:
        """Load the files into a context of their own: when does the certificate end? Raises: TlsFailure."""
        try:
            _server_context().load_cert_chain(self.certificate, self.key)
            first = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        except FileNotFoundError as failure:
            raise TlsFailure(f"{failure.filename or self.certificate}: not there") from None
        except (OSError, ValueError) as failure:  # ssl.SSLError is an OSError.
            raise TlsFailure(f"{self.certificate}, {self.key}: {failure}") from None
        return first.not_valid_after_utc.timestamp()


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # Of TLS 1.2; 1.3 brings its own.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context
