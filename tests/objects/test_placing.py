"""Objects lie where their bucket's policy and their storage class say, whichever verb wrote them."""

import pytest

from objstore.blobs.topology import Policy
from objstore.errors import BadArgument, BadStorageClass, BucketNotEmpty, CopyToSelf, Denied
from objstore.iam.tenants import create_tenant
from objstore.meta.kv import Transaction
from objstore.meta.schema import PartRecord, bucket_key, decode
from objstore.objects.accounting import open_account
from objstore.objects.buckets import create_bucket, place_bucket
from objstore.objects.copies import Source, copy_object
from objstore.objects.layout import LAYOUT_KEY
from objstore.objects.listing import list_objects
from objstore.objects.multipart import Claimed, complete_upload, create_upload, put_part
from objstore.objects.placing import STORAGE_CLASS, policy_of_bucket, sites_open_to_all
from objstore.objects.reads import find_object
from objstore.objects.residence import bind_tenant
from objstore.objects.store import Store
from objstore.objects.values import About
from objstore.objects.writes import put_object
from objstore.rental.customers import change_customer, create_customer, new_customer
from objstore.rental.sellers import create_seller
from tests.blobs.rig import Rig
from tests.blobs.sites import two_sites
from tests.objects.fakes import MemoryBody, principal, read_all
from tests.rental.parties import SELLER, a_customer

WHO = principal()
A, B = {1, 2, 3, 4, 5, 6}, {7, 8, 9, 10, 11, 12}
COLD = Policy(name="cold", sites=("b",), storage_class="COLD")
ANYWHERE = About()
SOURCE = Source(bucket="bucket", key="key")


async def at_two_sites() -> tuple[Store, Rig]:
    rig = await two_sites([Policy(name="here", sites=("a",)), COLD])
    store = Store(kv=rig.kv, writer=rig.writer, reader=rig.reader, ledger=rig.ledger, clock=rig.clock)
    store.placing.layout = await rig.ledger.layout()
    return store, rig


async def put(
    store: Store, key: str, size: int = 100, storage_class: str = "", bucket: str = "bucket"
) -> None:
    about = About(headers={STORAGE_CLASS: storage_class}) if storage_class else ANYWHERE
    await put_object(store, WHO, bucket, key, about, MemoryBody(b"x" * size))


async def disks_of(store: Store, key: str, bucket: str = "bucket") -> set[int]:
    found = await find_object(store, WHO, bucket, key)
    extents = list(found.record.extents)
    multipart = found.record.extra.multipart if found.record.extra else None
    if multipart is not None:
        assert multipart.manifest is not None
        extents.append(multipart.manifest)
        for _, value in await store.kv.scan(b"p", b"q", 100):
            extents += decode(value, PartRecord).extents
    assert extents
    return {number for extent in extents for number in (await store.ledger.get(extent.volume)).disks}


@pytest.mark.parametrize("size", [100, 3_000_000])
async def test_bytes_of_a_bucket_lie_on_the_disks_of_its_policy(size: int) -> None:
    store, _ = await at_two_sites()
    await create_bucket(store, WHO, "bucket", region="", policy="here")
    await create_bucket(store, WHO, "other", region="", policy="b")
    await put(store, "key", size)
    assert await disks_of(store, "key") == A
    await copy_object(store, WHO, SOURCE, "other", "copy", about=None)
    assert await disks_of(store, "copy", "other") == B
    assert await read_all(store, await find_object(store, WHO, "other", "copy")) == b"x" * size


async def test_parts_and_the_part_list_of_a_bucket_lie_there_too() -> None:
    store, _ = await at_two_sites()
    await create_bucket(store, WHO, "bucket", region="", policy="here")
    upload, _ = await create_upload(
        store, WHO, "bucket", "key", ANYWHERE, checksum_algorithm="", checksum_type=""
    )
    part = await put_part(store, WHO, "bucket", "key", upload, 1, MemoryBody(b"x" * 3_000_000))
    await complete_upload(store, WHO, "bucket", "key", upload, [Claimed(number=1, etag=part.etag)])
    assert await disks_of(store, "key") == A


async def test_a_bucket_that_changes_its_policy_under_a_write_has_the_bytes_written_again() -> None:
    store, rig = await at_two_sites()
    await create_bucket(store, WHO, "bucket", region="")
    commit, moved = rig.kv.commit, False

    async def slow(transaction: Transaction) -> None:
        nonlocal moved
        if not moved and bucket_key("bucket") in transaction.expect:
            moved = True
            await place_bucket(store, "bucket", "here")
        await commit(transaction)

    rig.kv.commit = slow  # type: ignore[method-assign]
    await put(store, "key")
    assert moved
    assert await disks_of(store, "key") == A


async def test_a_storage_class_selects_its_policy_and_is_shown() -> None:
    store, _ = await at_two_sites()
    await create_bucket(store, WHO, "bucket", region="")
    await put(store, "key", storage_class="COLD")
    assert await disks_of(store, "key") == B
    found = await find_object(store, WHO, "bucket", "key")
    assert found.record.extra is not None
    assert found.record.extra.headers == {STORAGE_CLASS: "COLD"}
    with pytest.raises(BadStorageClass):
        await put(store, "key", storage_class="GLACIER")
    with pytest.raises(CopyToSelf):
        await copy_object(store, WHO, SOURCE, "bucket", "key", about=None, storage_class="COLD")
    await put(store, "key")
    await copy_object(store, WHO, SOURCE, "bucket", "key", about=None, storage_class="COLD")
    assert await disks_of(store, "key") == B, "a copy onto itself moves the bytes to the class"
    await copy_object(store, WHO, SOURCE, "bucket", "copy", about=None)
    copied = (await find_object(store, WHO, "bucket", "copy")).record
    assert copied.extra is None, "the source's class is not taken over"


async def test_a_storage_class_never_leads_out_of_what_the_bucket_allows() -> None:
    store, _ = await at_two_sites()
    await create_bucket(store, WHO, "bucket", region="", policy="here")
    with pytest.raises(BadStorageClass):
        await put(store, "key", storage_class="COLD")
    await create_bucket(store, WHO, "other", region="", policy="b")
    await put(store, "key", storage_class="COLD", bucket="other")
    assert await disks_of(store, "key", "other") == B


async def test_a_bucket_with_objects_changes_its_policy_only_for_new_ones_and_only_if_that_is_said() -> None:
    store, _ = await at_two_sites()
    await create_bucket(store, WHO, "bucket", region="")
    await put(store, "old", storage_class="COLD")
    with pytest.raises(BucketNotEmpty):
        await place_bucket(store, "bucket", "here")
    assert await place_bucket(store, "bucket", "here", new_only=True) == 1
    await put(store, "new")
    assert await disks_of(store, "new") == A
    assert await disks_of(store, "old") == B
    assert await place_bucket(store, "bucket", "here") == 2, "it has this policy already"


async def test_a_policy_that_is_not_there_is_given_to_no_bucket() -> None:
    store, _ = await at_two_sites()
    with pytest.raises(BadArgument, match="no placement policy, and no site, nowhere"):
        await create_bucket(store, WHO, "bucket", region="", policy="nowhere")
    assert await store.kv.get(bucket_key("bucket")) is None


async def test_a_tenant_may_ask_for_sites_alone_and_for_none_that_is_leased() -> None:
    rig = await two_sites([Policy(name="a", sites=("a",)), Policy(name="x", sites=("a",))], pool="leased")
    store = Store(kv=rig.kv, writer=rig.writer, reader=rig.reader, ledger=rig.ledger, clock=rig.clock)
    assert await sites_open_to_all(store) == {"a"}


async def test_a_policy_dropped_while_a_bucket_is_made_is_not_given_to_it() -> None:
    store, rig = await at_two_sites()
    commit, dropped = rig.kv.commit, False

    async def slow(transaction: Transaction) -> None:
        nonlocal dropped
        if not dropped and bucket_key("bucket") in transaction.expect:
            dropped = True
            await commit(Transaction(delete=[LAYOUT_KEY]))
        await commit(transaction)

    rig.kv.commit = slow  # type: ignore[method-assign]
    with pytest.raises(BadArgument):
        await create_bucket(store, WHO, "bucket", region="", policy="here")


@pytest.mark.parametrize("delimiter", ["", "/"])
async def test_a_listing_says_the_class_of_every_object_that_is_not_standard(delimiter: str) -> None:
    store, _ = await at_two_sites()
    await create_bucket(store, WHO, "bucket", region="")
    await put(store, "a")
    await put(store, "b", storage_class="COLD")
    await put(store, "c/d", storage_class="COLD")
    spoken = About(metadata={"note": STORAGE_CLASS})  # A client's own words are no class.
    await put_object(store, WHO, "bucket", "e", spoken, MemoryBody(b"x"))
    await put(store, "f", storage_class="COLD")
    page = await list_objects(store, WHO, "bucket", prefix="", delimiter=delimiter, after="", limit=100)
    found = {page.names[index]: name for index, name in page.classes.items()}
    assert found == {"b": "COLD", "f": "COLD"} | ({} if delimiter else {"c/d": "COLD"})


async def test_a_tenants_sites_bind_every_bucket_that_it_makes() -> None:
    store, _ = await at_two_sites()
    await bind_tenant(store, WHO.tenant, sites=["a"])
    await create_bucket(store, WHO, "bucket", region="")
    await put(store, "key", 3_000_000)
    assert await disks_of(store, "key") == A
    await create_bucket(store, WHO, "pinned", region="", policy="here")
    for policy in ("cold", "b"):
        with pytest.raises(Denied, match="leads out of where"):
            await create_bucket(store, WHO, "elsewhere", region="", policy=policy)
        with pytest.raises(Denied, match="leads out of where"):
            await place_bucket(store, "bucket", policy, new_only=True)
    with pytest.raises(Denied, match="default"):
        await place_bucket(store, "pinned", "")
    with pytest.raises(BadStorageClass):
        await put(store, "other", storage_class="COLD")


async def test_a_tenant_of_two_sites_may_use_either_and_both_and_no_third() -> None:
    store, _ = await at_two_sites()
    await bind_tenant(store, WHO.tenant, sites=["b", "a"])
    await create_bucket(store, WHO, "both", region="")
    await create_bucket(store, WHO, "one", region="", policy="b")
    with pytest.raises(BadArgument, match="no site"):
        await create_bucket(store, WHO, "third", region="", policy="a+c")


async def test_a_tenant_is_bound_only_when_all_of_its_buckets_are_within() -> None:
    store, _ = await at_two_sites()
    await create_bucket(store, WHO, "free", region="")
    await create_bucket(store, WHO, "near", region="", policy="here")
    with pytest.raises(BadArgument, match="1 buckets lie elsewhere: free"):
        await bind_tenant(store, WHO.tenant, sites=["a"])
    with pytest.raises(BadArgument, match="no site nowhere"):
        await bind_tenant(store, WHO.tenant, sites=["nowhere"])
    await place_bucket(store, "free", "a")
    assert (await bind_tenant(store, WHO.tenant, sites=["a"])).sites == ["a"]
    assert (await bind_tenant(store, WHO.tenant, sites=[])).sites == []
    await place_bucket(store, "free", "")


async def test_a_bucket_placed_elsewhere_while_its_tenant_is_bound_is_one_or_the_other() -> None:
    store, _ = await at_two_sites()
    await create_bucket(store, WHO, "bucket", region="", policy="here")
    real = store.kv.commit
    moved = False

    async def overtaken(transaction: Transaction) -> None:
        nonlocal moved
        if not moved:
            moved = True
            await place_bucket(store, "bucket", "")
        await real(transaction)

    store.kv.commit = overtaken  # type: ignore[method-assign]
    with pytest.raises(BadArgument, match="lie elsewhere: bucket"):
        await bind_tenant(store, WHO.tenant, sites=["a"])


async def at_two_sites_with_a_reseller(*sites: str) -> Store:
    """Reseller `top`, bound to these sites; customers under it as tests make them."""
    store, _ = await at_two_sites()
    await create_seller(store.kv, SELLER)
    await a_customer(store.kv, "top", reseller=True)
    await bind_tenant(store, "top", sites=sites)
    return store


async def a_customer_of_top(store: Store, *sites: str) -> list[str]:
    """Makes `low`; where its bytes may lie."""
    record = new_customer("tpe_pme", "low", "oran", parent="top")
    await create_customer(store.kv, record, now_us=1, sites=sites, trial_days=30)
    return (await open_account(store, "low")).record.sites


async def test_a_customers_bytes_lie_where_its_resellers_may_and_nowhere_else() -> None:
    store = await at_two_sites_with_a_reseller("a")
    with pytest.raises(BadArgument, match="bytes of 'top' may not lie at b"):
        await a_customer_of_top(store, "a", "b")
    assert await a_customer_of_top(store) == ["a"]  # None said: its reseller's.
    who = principal("low")
    assert policy_of_bucket(await create_bucket(store, who, "bucket", region="")) == "a"
    with pytest.raises(Denied, match="leads out of where"):
        await create_bucket(store, who, "elsewhere", region="", policy="b")
    with pytest.raises(BadArgument, match="may not lie at b"):
        await bind_tenant(store, "low", sites=["b"])
    assert (await bind_tenant(store, "low", sites=[])).sites == ["a"]


async def test_under_a_reseller_that_may_store_anywhere_a_customer_may_and_is_bound_on_its_own() -> None:
    store = await at_two_sites_with_a_reseller()
    assert await a_customer_of_top(store) == []
    with pytest.raises(BadArgument, match="'low' may lie anywhere, those of 'top' only at a"):
        await bind_tenant(store, "top", sites=["a"])
    await bind_tenant(store, "low", sites=["b"])
    with pytest.raises(BadArgument, match="may not lie at b"):
        await bind_tenant(store, "top", sites=["a"])
    assert (await bind_tenant(store, "top", sites=["b"])).sites == ["b"]


async def test_a_customer_moves_only_under_a_reseller_whose_sites_it_is_within() -> None:
    store = await at_two_sites_with_a_reseller("a")
    record = new_customer("tpe_pme", "low", "oran")
    await create_customer(store.kv, record, now_us=1, sites=["b"], trial_days=30)
    with pytest.raises(BadArgument, match="may not lie at b"):
        await change_customer(store.kv, "low", parent="top")
    await bind_tenant(store, "low", sites=[])
    with pytest.raises(BadArgument, match="may lie anywhere"):
        await change_customer(store.kv, "low", parent="top")
    await bind_tenant(store, "low", sites=["a"])
    assert (await change_customer(store.kv, "low", parent="top")).parent == "top"


async def test_a_tenant_from_before_becomes_a_resellers_customer_within_its_sites_only() -> None:
    store = await at_two_sites_with_a_reseller("a")
    await create_tenant(store.kv, "low", now_us=1)
    record = new_customer("tpe_pme", "low", "oran", parent="top")
    with pytest.raises(BadArgument, match="may lie anywhere"):
        await create_customer(store.kv, record, now_us=1, adopt=True)
    await bind_tenant(store, "low", sites=["a"])
    await create_customer(store.kv, record, now_us=1, adopt=True)


@pytest.mark.parametrize("other", ["makes a customer", "widens a customer"])
async def test_of_a_reseller_bound_and_a_customer_let_out_at_the_same_time_one_is_refused(other: str) -> None:
    store = await at_two_sites_with_a_reseller("a", "b")
    if other == "widens a customer":
        await a_customer_of_top(store, "a")
    real = store.kv.commit
    overtaken = False

    async def commit(transaction: Transaction) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            if other == "makes a customer":
                await a_customer_of_top(store, "b")
            else:
                await bind_tenant(store, "low", sites=["a", "b"])
        await real(transaction)

    store.kv.commit = commit  # type: ignore[method-assign]
    with pytest.raises(BadArgument, match="may not lie at b"):
        await bind_tenant(store, "top", sites=["a"])
    assert overtaken
    assert (await open_account(store, "top")).record.sites == ["a", "b"]
