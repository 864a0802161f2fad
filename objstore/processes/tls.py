"""Certificates: loaded at the start, taken up again when their files change.

Concurrency: `watch` runs on a process's event loop; loading blocks it for about a millisecond.
"""

import asyncio
import logging
import os
import ssl

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


def make_context(certificate: str, key: str) -> ssl.SSLContext:
    """Raises: OSError (ssl.SSLError too) if the files cannot be read or do not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


async def watch(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Keep the context up to date for new connections. Never returns.

    A pair that does not fit (half of it replaced so far, say) is tried on a scratch context first: the
    one in use would keep the new certificate with the old key.
    """
    seen = _stamps(certificate, key)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = _stamps(certificate, key)
        if now == seen:
            continue
        try:
            make_context(certificate, key)
            context.load_cert_chain(certificate, key)
        except OSError as failure:
            log.warning("the new certificate is not usable yet", extra={"failure": str(failure)})
            continue
        seen = now
        log.info("certificate reloaded", extra={"file": certificate})


def _stamps(*paths: str) -> list[tuple[int, int, int]]:
    stamps = []
    for path in paths:
        try:
            found = os.stat(path)
            stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
        except OSError:
            stamps.append((0, 0, 0))
    return stamps


def expiry(certificate: str) -> float:
    """When the first certificate of a PEM file ends, seconds since 1970. Raises: OSError, ValueError."""
    from cryptography import x509

    with open(certificate, "rb") as file:
        return x509.load_pem_x509_certificate(file.read()).not_valid_after_utc.timestamp()
