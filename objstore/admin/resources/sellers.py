"""Sellers: the legal entities whose names stand on invoices."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from objstore.admin.callers import OPERATORS
from objstore.admin.pages import page
from objstore.admin.routes import Call, Page, Route, of_store
from objstore.admin.views import List, given_of, list_of, shown, view
from objstore.rental.records import SellerRecord, seller_key
from objstore.rental.sellers import change_seller, create_seller, find_seller, list_sellers

Seller: Final = view(SellerRecord)


class SellerFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays as it is."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    address: list[str] | msgspec.UnsetType = msgspec.UNSET
    country: str | msgspec.UnsetType = msgspec.UNSET
    tax_ids: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    capital: str | msgspec.UnsetType = msgspec.UNSET
    bank: str | msgspec.UnsetType = msgspec.UNSET
    timezone: str | msgspec.UnsetType = msgspec.UNSET
    collection_hours: int | msgspec.UnsetType = msgspec.UNSET
    past_due_days: int | msgspec.UnsetType = msgspec.UNSET
    read_only_days: int | msgspec.UnsetType = msgspec.UNSET
    suspended_days: int | msgspec.UnsetType = msgspec.UNSET
    reversibility_days: int | msgspec.UnsetType = msgspec.UNSET


class NewSeller(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    id: str
    name: str
    address: list[str]
    country: str
    tax_ids: dict[str, str] = {}
    capital: str = ""
    bank: str = ""
    timezone: str = "UTC"
    invoice_prefix: str = "FA"
    credit_prefix: str = "AV"
    collection_hours: int = 48
    past_due_days: int = 1
    read_only_days: int = 15
    suspended_days: int = 45
    reversibility_days: int = 30


def records(call: Call) -> Sequence[bytes]:
    return [seller_key(call.params["seller"])]


async def list_all(call: Call) -> List[Any]:
    async def read(after: str, limit: int) -> list[SellerRecord]:
        return await list_sellers(call.kv, after=after, limit=limit)

    return await page(call.query, read, lambda record: record.id, shown)


async def create(call: Call) -> Any:
    return shown(await create_seller(call.kv, SellerRecord(**msgspec.structs.asdict(call.body))))


async def show(call: Call) -> Any:
    return shown(await find_seller(call.kv, call.params["seller"]))


async def change(call: Call) -> Any:
    given = given_of(call.body, SellerRecord)
    return shown(await change_seller(call.kv, call.params["seller"], **given))


ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/sellers", name="list_sellers", summary="All legal entities that sell.",
        rule=OPERATORS, owner=of_store, query=Page, handler=list_all, answer=list_of(Seller),
    ),
    Route(
        method="POST", path="/api/v1/sellers", name="create_seller",
        summary="Add a legal entity, with its own series of invoice numbers.",
        rule=OPERATORS, owner=of_store, body=NewSeller, handler=create, answer=Seller, status=201,
    ),
    Route(
        method="GET", path="/api/v1/sellers/{seller}", name="show_seller", summary="A legal entity.",
        rule=OPERATORS, owner=of_store, handler=show, answer=Seller, tags=records,
    ),
    Route(
        method="PATCH", path="/api/v1/sellers/{seller}", name="change_seller",
        summary="Change a legal entity, from the next document on.",
        rule=OPERATORS, owner=of_store, body=SellerFields, handler=change, answer=Seller, tags=records,
    ),
)  # fmt: skip
