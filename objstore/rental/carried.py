"""Lines that wait for a tenant's next invoice: corrections, service level credits, fees.

A credit gives back at most what the invoice charges for its product; the rest waits for the one after it.
What a draft carries is taken when it becomes final, in that commit. A name is used once: what was taken stays
on record, so that whoever asks again for the same line changes nothing.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final

import msgspec

from objstore.errors import BadArgument
from objstore.meta.kv import Kv, prefix_end
from objstore.meta.schema import decode
from objstore.rental.changes import Change, commit_change
from objstore.rental.customers import no_such_customer
from objstore.rental.lines import check_lines
from objstore.rental.money import Money
from objstore.rental.names import check_text
from objstore.rental.records import CarriedRecord, CustomerRecord, Line, carried_key, customer_key, taken_key

CARRIED_MAX: Final = 400  # Lines that one invoice takes over: the others wait for the next.
NAME_SIZE_MAX: Final = 100  # Bytes.
FORWARD: Final = "carried_forward"  # Of a line, in place of a meter.
_FORWARD_WORDS: Final = {
    "fr": ("Report sur la facture suivante", "Report de la facture"),
    "en": ("Carried to the next invoice", "Brought forward from invoice"),
    "ar": ("يُرحَّل إلى الفاتورة التالية", "مُرحَّل من الفاتورة"),
}
CARRIED_KINDS: Final = frozenset({"credit", "correction", "adjustment"})  # Rating makes none of these.


async def carry(
    kv: Kv, tenant: str, lines: Mapping[str, Line], *, source: str, now_us: int
) -> list[CarriedRecord]:
    """Have lines wait for the tenant's next invoice; a name that waits or was taken is left as it is.

    Args:
        lines: by a name that says what they are, and is given once: "sla/2026-03/STANDARD".
        source: where they come from, for people.

    Raises: BadArgument, also where a name is another line's.
    """

    async def decide(change: Change) -> list[CarriedRecord]:
        await change.found(customer_key(tenant), CustomerRecord, no_such_customer(tenant))
        return [await put_carried(change, tenant, name, line, source, now_us) for name, line in lines.items()]

    return await commit_change(kv, decide, what=f"lines of {tenant!r}")


async def put_carried(
    change: Change, tenant: str, name: str, line: Line, source: str, now_us: int
) -> CarriedRecord:
    """`carry` as a part of a greater change. Raises: BadArgument."""
    check_text(source, "source")
    if not name or len(name) > NAME_SIZE_MAX or not name.isascii() or not name.isprintable():
        raise BadArgument(f"a name has 1 to {NAME_SIZE_MAX} plain letters", name="name", value=name)
    if line.kind not in CARRIED_KINDS:
        raise BadArgument(
            f"what waits is one of {', '.join(sorted(CARRIED_KINDS))}", name="kind", value=line.kind
        )
    line = msgspec.structs.replace(line, tax=0, corrects=0)
    check_lines([line])
    there = await change.record(carried_key(tenant, name), CarriedRecord)
    if there is None:
        there = await change.record(taken_key(tenant, name), CarriedRecord)
    if there is not None:
        if there.line != line:
            raise BadArgument(f"another line is called {name!r}", name="name", value=name)
        return there
    record = CarriedRecord(line=line, left=line.net, source=source, made_us=now_us)
    change.put(carried_key(tenant, name), record)
    return record


async def list_carried(kv: Kv, tenant: str, *, limit: int = CARRIED_MAX) -> list[tuple[str, CarriedRecord]]:
    """What waits, by name."""
    prefix = carried_key(tenant, "")
    return [
        (key[len(prefix) :].decode(), decode(value, CarriedRecord))
        for key, value in await kv.scan(prefix, prefix_end(prefix), limit)
    ]


def take_carried(
    lines: Sequence[Line], waiting: Sequence[tuple[str, CarriedRecord]]
) -> tuple[list[Line], list[tuple[str, int]]]:
    """What an invoice of these lines takes over: all charges, then credits as long as something is left.

    Returns:
        The lines, and of each name how much.
    """
    left: dict[str, int] = {}
    for line in lines:
        left[line.product] = left.get(line.product, 0) + line.net
    taken: list[Line] = []
    amounts: list[tuple[str, int]] = []
    for name, record in sorted(waiting, key=lambda one: (one[1].left < 0, one[1].made_us, one[0])):
        line = record.line
        rest = left.get(line.product, 0)
        amount = record.left if record.left >= 0 else -min(-record.left, max(0, rest))
        if not amount:
            continue
        left[line.product] = rest + amount
        taken.append(line if amount == line.net else part_of(line, amount))
        amounts.append((name, amount))
    return taken, amounts


async def settle_carried(change: Change, tenant: str, amounts: Sequence[tuple[str, int]]) -> None:
    """What a draft carries is taken: it became final.

    Raises: BadArgument (there is less of it by now: the draft is out of date).
    """
    for name, amount in amounts:
        key = carried_key(tenant, name)
        absent = BadArgument(f"{name!r} waits no longer: draft again", name="draft", value=name)
        record = await change.found(key, CarriedRecord, absent)
        if record.left < 0 < amount or abs(amount) > abs(record.left):
            raise BadArgument(f"less of {name!r} waits by now: draft again", name="draft", value=name)
        record = msgspec.structs.replace(record, left=record.left - amount)
        if record.left:
            change.put(key, record)
        else:
            change.delete(key)
            change.put(taken_key(tenant, name), record)


def carry_forward(lines: Sequence[Line], language: str) -> list[Line]:
    """What brings an invoice of these lines up to nothing where they come to less: it waits for the next one.

    That is so where charges in advance are given back, and little else was used.
    """
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.product] = sums.get(line.product, 0) + line.net
    return [
        Line(
            kind="adjustment",
            description=_FORWARD_WORDS[language][0],
            meter=FORWARD,
            net=-net,
            product=product,
        )
        for product, net in sorted(sums.items())
        if net < 0
    ]


async def put_forward(
    change: Change, tenant: str, lines: Sequence[Line], *, month: str, number: str, language: str, now_us: int
) -> None:
    """What `carry_forward` added to a draft waits for the next invoice: the draft became final.

    Args:
        number: of the invoice that it comes from.
    """
    for line in lines:
        if line.meter == FORWARD:
            words = f"{_FORWARD_WORDS[language][1]} {number}"
            brought = Line(kind="credit", description=words, net=-line.net, product=line.product)
            await put_carried(change, tenant, f"forward/{month}/{line.product}", brought, number, now_us)


def part_of(line: Line, net: int) -> Line:
    """The same line with a part of its amount: then its quantity says nothing any more."""
    return msgspec.structs.replace(line, net=net, quantity="", unit_price="", consumed="")


def termination_fee(
    remaining: Money, share: Fraction, *, description: str, lease: str, at_us: int, product: str = "storage"
) -> Line:
    """What ending a lease before its term costs.

    Args:
        remaining: the commitment's charges from the end to the end of its term.
        share: what of them is due, 0 to 1.

    Raises: BadArgument.
    """
    if not 0 <= share <= 1 or remaining.minor < 0:
        raise BadArgument("a fee is a share, 0 to 1, of what remains", name="share", value=str(share))
    return Line(
        kind="adjustment",
        description=description,
        begin_us=at_us,
        end_us=at_us,
        net=remaining.share(share).minor,
        product=product,
        lease=lease,
    )
