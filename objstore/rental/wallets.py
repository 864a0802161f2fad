"""Wallets: what customers paid in advance or were given back: a ledger that only grows, and its balance.

Every entry says what the balance was behind it and is chained to the one before; balance and entry are
written in the commit of what caused them.
"""

import hashlib
from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import Kv, pages, prefix_end
from objstore.meta.schema import decode, encode
from objstore.rental.changes import Change
from objstore.rental.money import Money
from objstore.rental.records import WalletEntryRecord, WalletRecord, wallet_entry_key, wallet_key

READ_AT_ONCE: Final = 500
PAYMENT: Final = "payment"  # What was paid in, or out of it.
CREDITED: Final = "credit_note"
INVOICED: Final = "invoice"  # Taken when an invoice became final.
REVERSED: Final = "reversal"


def entry_digest(previous: bytes, entry: WalletEntryRecord) -> bytes:
    """SHA-256 over the digest before it and what the entry says."""
    said = (previous, entry.amount, entry.balance, entry.kind, entry.document, entry.at_us)
    return hashlib.sha256(encode(said)).digest()


async def wallet_of(change: Change, tenant: str, currency: str) -> WalletRecord:
    """Empty if there is none. Raises: BadArgument (it is kept in another currency, and not empty)."""
    wallet = await change.record(wallet_key(tenant), WalletRecord)
    if wallet is None:
        return WalletRecord(currency=currency, balance=0)
    if wallet.currency != currency:
        if wallet.balance:
            raise BadArgument(
                f"the wallet of {tenant!r} is kept in {wallet.currency}", name="currency", value=currency
            )
        return msgspec.structs.replace(wallet, currency=currency)
    return wallet


async def move(
    change: Change, tenant: str, amount: Money, *, kind: str, document: str, at_us: int
) -> WalletRecord:
    """Put an amount into a wallet, or take it out (below zero): an entry and the balance behind it.

    It may take more than there is: what bounced after it was spent is owed.

    Raises: BadArgument (another currency).
    """
    wallet = await wallet_of(change, tenant, amount.currency)
    if not amount:
        return wallet
    entry = WalletEntryRecord(
        amount=amount.minor, balance=wallet.balance + amount.minor, kind=kind, document=document, at_us=at_us
    )
    entry = msgspec.structs.replace(entry, digest=entry_digest(wallet.digest, entry))
    wallet = WalletRecord(
        currency=amount.currency, balance=entry.balance, entries=wallet.entries + 1, digest=entry.digest
    )
    change.put(wallet_entry_key(tenant, wallet.entries), entry)
    change.put(wallet_key(tenant), wallet)
    return wallet


async def balance(kv: Kv, tenant: str) -> Money | None:
    """None: there is no wallet."""
    value = await kv.get(wallet_key(tenant))
    if value is None:
        return None
    wallet = decode(value, WalletRecord)
    return Money(wallet.balance, wallet.currency)


async def owed_since(change: Change, tenant: str) -> int | None:
    """When the balance went below zero, in microseconds; None: it is not.

    Of a wallet that has been so for more than READ_AT_ONCE entries, the moment of the first of these.
    """
    wallet = await change.record(wallet_key(tenant), WalletRecord)
    if wallet is None or wallet.balance >= 0:
        return None
    end = wallet_entry_key(tenant, wallet.entries + 1)
    start = wallet_entry_key(tenant, max(1, wallet.entries + 1 - READ_AT_ONCE))
    since_us = 0
    for _, value in await change.kv.scan(start, end, READ_AT_ONCE, reverse=True):
        entry = decode(value, WalletEntryRecord)
        if entry.balance >= 0:
            break
        since_us = entry.at_us
    return since_us


async def list_entries(
    kv: Kv, tenant: str, *, after: int = 0, limit: int = 1_000
) -> list[tuple[int, WalletEntryRecord]]:
    """Sequences > after, in order."""
    start, end = wallet_entry_key(tenant, after + 1), prefix_end(wallet_entry_key(tenant, 0)[:-8])
    return [
        (int.from_bytes(key[-8:], "big"), decode(value, WalletEntryRecord))
        for key, value in await kv.scan(start, end, limit)
    ]


async def verify_wallet(kv: Kv, tenant: str) -> list[str]:
    """What is wrong with a ledger, in words: an entry altered, removed or exchanged, a wrong balance."""
    value = await kv.get(wallet_key(tenant))  # First: what moves from now on lies behind it.
    wallet = WalletRecord(currency="DZD", balance=0) if value is None else decode(value, WalletRecord)
    findings: list[str] = []
    whole = sequence = 0
    digest = b""
    end = wallet_entry_key(tenant, wallet.entries + 1)
    async for pairs in pages(kv, wallet_entry_key(tenant, 0), end, READ_AT_ONCE):
        for key, stored in pairs:
            entry = decode(stored, WalletEntryRecord)
            number = int.from_bytes(key[-8:], "big")
            if number != sequence + 1:
                findings.append(f"entries {sequence + 1} to {number - 1} are missing")
            sequence = number
            whole += entry.amount
            if entry.balance != whole:
                findings.append(f"entry {sequence} has the balance {entry.balance}, and the sum is {whole}")
            if entry.digest != entry_digest(digest, entry):
                findings.append(f"entry {sequence} is not as it was made, or not behind the one before it")
            digest = entry.digest
    if (wallet.balance, wallet.entries, wallet.digest) != (whole, sequence, digest):
        findings.append(f"the wallet says {wallet.balance} behind {wallet.entries} entries, not {whole}")
    return findings
