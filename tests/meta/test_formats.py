"""docs/formats.md, held to the code: every key and record of metadata, byte by byte.

A test that fails here means that a store of an earlier release may no longer be read: do not change the
bytes, see the upgrade rule.
"""

from datetime import date
from decimal import Decimal

import msgspec
import pytest

from objstore.audit.records import HEAD_KEY, AuditHead, AuditRecord, Changed, audit_key
from objstore.blobs.topology import Policy
from objstore.blobs.volumes import VolumeRecord
from objstore.extents import Extent
from objstore.meta import schema
from objstore.meta.kv import counter, counter_value
from objstore.meta.schema import (
    AccessKeyRecord,
    AccountRecord,
    AdoptionRecord,
    AuthorityRecord,
    BucketRecord,
    ChangeRecord,
    Checksum,
    ClassTerms,
    DiskRecord,
    DoomedRecord,
    ExtentPage,
    Extra,
    JoinRecord,
    LastUseRecord,
    Limits,
    MemberRecord,
    Multipart,
    ObjectRecord,
    PartEntry,
    PartRecord,
    PartsPage,
    ReplicaRecord,
    ReplicationProgress,
    ReplicationRecord,
    ReservationRecord,
    RotationRecord,
    TenantRecord,
    TitleRecord,
    UploadRecord,
    UserRecord,
    decode,
    encode,
)
from objstore.objects.adoption import METERED_KEY
from objstore.objects.layout import LAYOUT_KEY, PLACED_KEY, LayoutRecord, MachinePlace, Plan
from objstore.processes.writers import WriterRecord
from objstore.rental.availability import ServedDayRecord, ServiceDayRecord, day_key, request_keys, served_key
from objstore.rental.first_plans import PlanSinceRecord, since_key
from objstore.rental.meters import DELTA, STORED, meter_prefix
from objstore.rental.months import Month
from objstore.rental.plans import Plan as RateCard
from objstore.rental.plans import PlanRecord, Rate, Tier, plan_key
from objstore.rental.rates import DemandRecord
from objstore.rental.records import (
    CapacityDayRecord,
    CapacityEventRecord,
    ChainRecord,
    HeldRecord,
    LeaseRecord,
    OfferRecord,
    RetiredRecord,
    SalesRecord,
    SealedRecord,
    UsageRecord,
)
from objstore.rental.service_levels import (
    CreditTier,
    GrantedCredit,
    ServiceEventRecord,
    ServiceLevel,
    ServiceLevelRecord,
    ServiceMonthRecord,
    service_event_key,
    service_level_key,
    service_month_key,
)
from objstore.rental.taxes import TaxRule, TaxRuleRecord, tax_rule_key
from objstore.rental.usage import SEALED_KEY, chain_key, held_key, retired_key, superseded_key, usage_prefix
from objstore.upkeep.claims import ClaimRecord

ID = bytes(range(16))
EXTENT = Extent(7, 64, 4096, 8, 300, 0x1122334455667788)
STREAM = (258).to_bytes(8, "big") + b"COLD\0"
USAGE_HEX = "68" + b"acme\0".hex() + "0007349e 0000000000000102" + b"COLD\0s".hex()
EXTENT_HEX = "9607 40 cd1000 08 cd012c cf1122334455667788"

KEYS = [
    (schema.bucket_key("photos"), "62" + b"photos".hex()),
    (schema.tenant_bucket_key("acme", "photos"), "69" + b"acme\0photos".hex()),
    (schema.bucket_objects_key(258), "63 0000000000000102 6f"),
    (schema.bucket_bytes_key(258), "63 0000000000000102 73"),
    (schema.bucket_uploads_key(258), "63 0000000000000102 75"),
    (schema.object_key(258, b"a/b"), "6f 0000000000000102 612f62"),
    (schema.body_key(schema.object_key(258, b"a/b")), "42 0000000000000102 612f62"),
    (schema.extent_page_key(ID, 258), "78" + ID.hex() + "0102"),
    (schema.upload_key(258, b"a\0b", ID), "6d 0000000000000102 6100ff62 0001" + ID.hex()),
    (schema.part_key(ID, 10_000), "70" + ID.hex() + "2710"),
    (schema.parts_page_key(ID, 1), "71" + ID.hex() + "0001"),
    (schema.upload_generation_key(ID), "67" + ID.hex() + "6e"),
    (schema.upload_bytes_key(ID), "67" + ID.hex() + "73"),
    (schema.doomed_key(ID), "64" + ID.hex()),
    (schema.volume_key(258), "56 0000000000000102"),
    (schema.volume_length_key(258), "4c 0000000000000102"),
    (schema.volume_live_key(258), "47 0000000000000102"),
    (schema.repair_key(258, 5), "52 0000000000000102 05"),
    (schema.change_key(258, 3, b"k"), "72 0000000000000102 0000000000000003" + b"k".hex()),
    (schema.bucket_changes_key(258), "63 0000000000000102 6e"),
    (schema.bucket_change_bytes_key(258), "63 0000000000000102 7a"),
    (schema.replication_key("b"), "53" + b"replication/b".hex()),
    (schema.disk_key(258), "44 0102"),
    (schema.member_key(ID), "6e" + ID.hex()),
    (schema.join_key(ID), "6a" + ID.hex()),
    (schema.serial_key("trust"), "4e" + b"trust".hex()),
    (schema.setting_key("authority"), "53" + b"authority".hex()),
    (schema.serial_key("volumes"), "4e" + b"volumes".hex()),
    (schema.claim_key("upkeep"), "43" + b"upkeep".hex()),
    (schema.setting_key("scrub"), "53" + b"scrub".hex()),
    (schema.setting_key("lost"), "53" + b"lost".hex()),
    (LAYOUT_KEY, "53" + b"layout".hex()),
    (PLACED_KEY, "4e" + b"placed".hex()),
    (schema.bucket_billed_key(258), "63 0000000000000102 62"),
    (schema.account_key("acme"), "61" + b"acme".hex()),
    (schema.tenant_use_key("acme"), "5174" + b"acme\0".hex()),
    (schema.project_use_key("acme", "web"), "5170" + b"acme\0web\0".hex()),
    (schema.reservation_key(ID), "45" + ID.hex()),
    (schema.title_key(258), "77 0000000000000102"),
    (meter_prefix(472_222, 258, "COLD") + DELTA, "4d 0007349e 0000000000000102" + b"COLD\0d".hex()),
    (plan_key("small", 258), "5970" + b"small".hex() + "00 00000102"),
    (since_key("acme", Month(2026, 3)), "5967" + b"acme".hex() + "00 5efa"),
    (tax_rule_key("dz"), "5974" + b"dz".hex()),
    (service_level_key("gold"), "5953" + b"gold".hex()),
    (request_keys("acme", 472_222 * 12 + 3)[1], "66 0007349e" + b"acme\0".hex() + "0366"),
    (served_key(472_222 * 60 + 59), "66 0007349e 00 3b 75"),
    (day_key("acme", 258), "46" + b"acme\0".hex() + "00000102"),
    (service_event_key("01"), "594d 3031"),
    (service_month_key("acme", Month(1970, 2)), "5973" + b"acme\0".hex() + "0000026f9d14a000"),
    (held_key(STREAM), "79 0000000000000102" + b"COLD\0".hex()),
    (usage_prefix("acme", 472_222) + STREAM + STORED, USAGE_HEX),
    (
        superseded_key("acme", usage_prefix("acme", 472_222) + STREAM + STORED, 2),
        "68" + b"acme\1".hex() + "0007349e 0000000000000102" + b"COLD\0s".hex() + "00000002",
    ),
    (chain_key("acme"), "48" + b"acme".hex()),
    (retired_key("acme", 258), "48" + b"acme\0".hex() + "00000102"),
    (SEALED_KEY, "53" + b"metering".hex()),
    (METERED_KEY, "53" + b"metered".hex()),
    (schema.tenant_key("acme"), "74" + b"acme".hex()),
    (schema.user_key("alice"), "75" + b"alice".hex()),
    (schema.access_key_key("OSABC"), "6b" + b"OSABC".hex()),
    (schema.token_key("OTABC"), "4b" + b"OTABC".hex()),
    (schema.repeat_key(ID + ID), "49" + ID.hex() + ID.hex()),
    (audit_key(258), "54 0000000000000102"),
    (HEAD_KEY, "53" + b"audit".hex()),
]

RECORDS: list[tuple[msgspec.Struct, str]] = [
    (EXTENT, EXTENT_HEX),
    (
        BucketRecord(id=1, tenant="t", owner="u", created_us=2, region="r", settings={"s": b"\1"}),
        "97 01 01 a174 a175 02 a172 81a173c40101",
    ),
    (
        ObjectRecord(1, 2, b"", 3, ID, b"\0\1\2\3\4", [EXTENT]),
        "99 01 02 c400 03 c410" + ID.hex() + "c4050001020304 91" + EXTENT_HEX + "c0 a0",
    ),
    (
        ObjectRecord(
            1, 2, ID, 3, ID + b"\0\2", b"", [], Extra(multipart=Multipart(ID, 2, EXTENT), salvaged=True), "o"
        ),
        "99 01 02 c410" + ID.hex() + "03 c412" + ID.hex() + "0002 c400 90"
        "82 a170 93 c410" + ID.hex() + "02" + EXTENT_HEX + "a173 c3 a16f",
    ),
    (
        Extra(content_type="t", headers={"h": "1"}, metadata={"m": "2"}, blob=ID, pages=3),
        "85 a174 a174 a168 81a168a131 a16d 81a16da132 a178 c410" + ID.hex() + "a16e 03",
    ),
    (ExtentPage(extents=[EXTENT], begin=9), "93 01 91" + EXTENT_HEX + "09"),
    (
        UploadRecord(order=2, checksum_algorithm="SHA1", checksum_type="COMPOSITE", owner="o", seen=5),
        "99 01 02 00 c0 a4" + b"SHA1".hex() + "a9" + b"COMPOSITE".hex() + "a16f 05 c2",
    ),
    (
        PartRecord(order=2, size=3, etag=ID, checksum=b"", extents=[EXTENT], blob=ID, pages=1, home=b"m"),
        "99 01 02 03 c410" + ID.hex() + "c400 91" + EXTENT_HEX + "c410" + ID.hex() + "01 c4016d",
    ),
    (
        PartsPage(parts=[PartEntry(number=1, size=2, etag=ID)], begin=9),
        "93 01 91 94 01 02 c410" + ID.hex() + "c400 09",
    ),
    (DoomedRecord(since_us=2, unlisted=True), "93 01 02 c3"),
    (
        ReplicationRecord(
            endpoint="e",
            bucket="b",
            access_key="k",
            secret=b"s",
            region="r",
            site="t",
            generation=5,
            since_us=6,
        ),
        "9a 01 a165 a162 a16b c40173 a172 a174 05 06 a0",
    ),
    (
        ReplicaRecord(
            cluster="c",
            source=2,
            bucket="b",
            access_key="k",
            generation=3,
            session=4,
            promoted_us=5,
            since_us=6,
        ),
        "99 01 a163 02 a162 a16b 03 04 05 06",
    ),
    (ReplicationProgress(bucket=2, cursor=b"k", began_us=3, finished_us=4), "95 01 02 c4016b 03 04"),
    (ChangeRecord(size=3), "92 01 03"),
    (
        DiskRecord(uuid=ID, path="/d", state="suspect", reason="r", since_us=2),
        "98 01 c410" + ID.hex() + "a22f64 a7" + b"suspect".hex() + "a172 02 c400 00",
    ),
    (
        MemberRecord(
            role="node",
            name="n",
            state="joined",
            addresses=["h:1"],
            site="s",
            rack="r",
            joined_us=2,
            away_us=3,
            issuer="i",
            ends_s=4,
        ),
        "9c 01 a4"
        + b"node".hex()
        + "a16e a6"
        + b"joined".hex()
        + "91 a3"
        + b"h:1".hex()
        + "a173 a172 02 03 a169 04 00",
    ),
    (JoinRecord(member=ID, key=b"\7", expires_s=2), "94 01 c410" + ID.hex() + "c40107 02"),
    (AuthorityRecord(bundle=b"{}"), "92 01 c402" + b"{}".hex()),
    (
        AccountRecord(
            state="trial",
            limits=Limits(bytes_max=1),
            projects={"p": Limits()},
            classes={"": ClassTerms(bytes_min=2, seconds_min=3)},
            sites=["s"],
            leased=4,
            stream=5,
        ),
        "99 01 a5" + b"trial".hex() + "96 01 c0c0c0c0c0 81 a170 96 c0c0c0c0c0c0"
        " 81 a0 92 02 03 91 a173 a0 04 05",
    ),
    (
        ReservationRecord(
            tenant="t", project="p", bucket=1, size=2, expires_us=3, access_key="k", key_size=4
        ),
        "98 01 a174 a170 01 02 03 a16b 04",
    ),
    (TitleRecord(tenant="t", project="", name="b", created_us=2), "96 01 a174 a0 a162 02 00"),
    (DemandRecord(count=2, demands={"t a": [3, 4]}), "93 01 02 81 a3742061 920304"),
    (Extra(padding=5), "81 a162 05"),
    (Extra(counted=7), "81 a163 07"),
    (Extra(came_us=9), "81 a161 09"),
    (AdoptionRecord(begun_us=2, cursor=b"k"), "93 01 02 c4016b"),
    (HeldRecord(hour=3, size=4), "93 01 03 04"),
    (
        UsageRecord(quantity=5, project="p", bucket="b", sealed_us=7, previous=b"\1", digest=b"\2"),
        "9b 01 05 a170 a162 01 07 c40101 c40102 00 00 00",
    ),
    (ChainRecord(count=2, digest=b"\2", pages=1), "94 01 02 c40102 01"),
    (
        RetiredRecord(first_hour=1, last_hour=2, count=3, runs=[(b"\1", b"\2")], digest=b"\3"),
        "96 01 01 02 03 91 92 c40101 c40102 c40103",
    ),
    (SealedRecord(hour=3, accepted=4), "93 01 03 04"),
    (WriterRecord(1, ID, 2, meters=True), "94 01 c410" + ID.hex() + "02 c3"),
    (Extra(access_key="k"), "81 a16b a16b"),
    (TenantRecord(name="t", created_us=2), "94 01 a174 02 c2"),
    (UserRecord(tenant="t", name="u", created_us=2, root=True), "98 01 a174 a175 02 c2 c3 a0 a56f776e6572"),
    (
        AccessKeyRecord(user="u", secret=b"\7", created_us=2, comment="c"),
        "9c 01 a175 c40107 02 c2 a163 a0 a0 00 90 96c0c0c0c0c0c0 a0",
    ),
    (
        RotationRecord(under="0f", part=1, after="k", done=7, began_us=2),
        "97 01 a23066 01 a16b 07 02 00",
    ),
    (LastUseRecord(hour=500_000), "92 01 ce0007a120"),
    (
        schema.TokenRecord(user="u", digest_of_secret=b"\7", created_us=2, expires_us=3, comment="c"),
        "96 01 a175 c40107 02 03 a163",
    ),
    (
        schema.RepeatRecord(digest=b"\7", since_us=2, state="s", attempt=b"\1", status=200, answer=b"{}"),
        "97 01 c40107 02 a173 c40101 ccc8 c4027b7d",
    ),
    (
        AuditRecord(
            at_us=2,
            who="w",
            action="a",
            target="t",
            outcome="o",
            changes=[Changed("c", "", "{}")],
            previous=b"\7",
        ),
        "9c 01 02 a177 a161 a174 a16f a0 a0 a0 a0 91 93 a163 a0 a27b7d c40107",
    ),
    (
        LeaseRecord(
            id="l",
            tenant="t",
            kind="k",
            state="s",
            capacity=2,
            begin_us=3,
            end_us=4,
            term_months=5,
            ramp=[(3, 2)],
            nodes=["n"],
        ),
        "dc 0025 01 a16c a174 a16b a173 02 03 04 05 91 92 03 02 a0 91 a16e a0 a7"
        + b"storage".hex()
        + "a3"
        + b"DZD".hex()
        + "a25442 a130 a7"
        + b"arrears".hex()
        + "00 a0 a130 c0 c2 1e 00 a131 00 a0 a0 a0"
        "00 00 00 00 00 00 a0",
    ),
    (
        OfferRecord(name="o", least=2, most=3, terms_months=[4]),
        "dc 001b 01 a16f aa"
        + b"guaranteed".hex()
        + "a0 c3 90 02 03 01 91 04 5a a0 a0 a7"
        + b"storage".hex()
        + "a3"
        + b"DZD".hex()
        + "a25442 a130 a7"
        + b"arrears".hex()
        + "a0 a130 c0 c2 1e a131 00 a0 00",
    ),
    (CapacityEventRecord(id="e", at_us=2, raw=-3), "98 01 a165 02 fd a7" + b"planned".hex() + "a0 a0 00"),
    (
        SalesRecord(version=2),
        "98 01 02 a4" + b"0.85".hex() + "01 a3" + b"1.5".hex() + "a4" + b"0.85".hex() + "cd016d c2",
    ),
    (CapacityDayRecord(usable=2, used=3, sold=4), "94 01 02 03 04"),
    (AuditHead(sequence=3, digest=b"\7", at_us=2), "94 01 03 c40107 02"),
    (
        VolumeRecord(id=7, k=2, m=1, disks=[1, 2, 3], state=1, lane=1, writer=ID, length=64, retired_us=5),
        "9c 01 07 02 01 93010203 01 01 c410" + ID.hex() + "a0 00 40 05",
    ),
    (ClaimRecord(1, ID, 4), "93 01 c410" + ID.hex() + "04"),
    (
        LayoutRecord(
            serial=3,
            version=2,
            current=Plan(
                machines={"00": MachinePlace(site="s", weight=0.5)},
                policies={"p": Policy(name="p", sites=("s",), storage_class="C", k=2, m=1)},
            ),
            staged=Plan(drains=["00"]),
            applied_us=4,
        ),
        "97 01 03 02 82 a8"
        + b"machines".hex()
        + "81 a23030 82 a4"
        + b"site".hex()
        + "a173 a6"
        + b"weight".hex()
        + "cb3fe0000000000000 a8"
        + b"policies".hex()
        + "81 a170 85 a4"
        + b"name".hex()
        + "a170 a5"
        + b"sites".hex()
        + "91a173 a16b 02 a16d 01 ad"
        + b"storage_class".hex()
        + "a143 81 a6"
        + b"drains".hex()
        + "91a23030 c0 04",
    ),
    (
        PlanRecord(
            plan=RateCard(
                code="p",
                version=1,
                currency="EUR",
                items=(
                    Rate(
                        meter="storage",
                        model="per_unit",
                        unit="GB",
                        tiers=(Tier(unit_price=Decimal("0.10")),),
                    ),
                ),
                valid_from=date(2026, 1, 2),
            ),
            made_us=2,
            made_by="w",
        ),
        "94 01 85 "
        + (b"\xa4code\xa1p" + b"\xa7version\1" + b"\xa8currency\xa3EUR" + b"\xa5items\x91\x84").hex()
        + (b"\xa5meter\xa7storage" + b"\xa5model\xa8per_unit" + b"\xa4unit\xa2GB").hex()
        + (b"\xa5tiers\x91\x81" + b"\xaaunit_price\xa40.10").hex()
        + (b"\xaavalid_from\xaa2026-01-02").hex()
        + "02 a177",
    ),
    (PlanSinceRecord(plan="p", version=2, made_us=3), "94 01 a170 02 03"),
    (
        TaxRuleRecord(rule=TaxRule(id="d", country="DZ", rate=Decimal("0.190"), label="TVA"), made_us=2),
        "93 01 84 "
        + (b"\xa2id\xa1d" + b"\xa7country\xa2DZ" + b"\xa4rate\xa50.190" + b"\xa5label\xa3TVA").hex()
        + "02",
    ),
    (
        ServiceLevelRecord(
            level=ServiceLevel(id="g", tiers=(CreditTier(below=Decimal("0.999"), credit=Decimal("0.10")),)),
            made_us=2,
        ),
        "93 01 82 "
        + (b"\xa2id\xa1g" + b"\xa5tiers\x91\x82" + b"\xa5below\xa50.999" + b"\xa6credit\xa40.10").hex()
        + "02",
    ),
    (ServiceDayRecord(rows=[(0, 5, 1), (287, 300, 0)]), "92 01 92 93000501 93cd011fcd012c00"),
    (ServedDayRecord(minutes=b"\1\x80"), "92 01 c4020180"),
    (
        ServiceEventRecord(id="1", kind="outage", begin_us=2, end_us=3, reason="r", tenant="t", made_us=4),
        "98 01 a131" + b"\xa6outage".hex() + "02 03 a172 a174 04",
    ),
    (
        ServiceMonthRecord(
            invoice="F",
            uptime="1/2",
            counted=3,
            failed=4,
            credits=[GrantedCredit(level="g", share="1", net=5)],
            made_us=6,
        ),
        "97 01 a146 a3312f32 03 04 91 9401a167a13105 06",
    ),
]


@pytest.mark.parametrize(("key", "hexadecimal"), KEYS)
def test_a_key_has_the_bytes_that_the_page_shows(key: bytes, hexadecimal: str) -> None:
    assert key.hex() == hexadecimal.replace(" ", "")


@pytest.mark.parametrize(("record", "hexadecimal"), RECORDS, ids=lambda value: type(value).__name__)
def test_a_record_has_the_bytes_that_the_page_shows_and_is_read_from_them(
    record: msgspec.Struct, hexadecimal: str
) -> None:
    assert encode(record).hex() == hexadecimal.replace(" ", "")
    assert decode(bytes.fromhex(hexadecimal), type(record)) == record


@pytest.mark.parametrize(
    ("short", "record"),
    [
        ("97 01 02 c400 03 c400 c400 90", ObjectRecord(1, 2, b"", 3, b"", b"", [])),
        ("92 01 02", DoomedRecord(since_us=2)),
        ("92 01 90", ExtentPage(extents=[])),
        ("95 07 40 08 00 01", Extent(7, 64, 8, 0, 1)),
        (
            "96 01 c410" + ID.hex() + "a22f64 a7" + b"suspect".hex() + "a172 02",
            DiskRecord(uuid=ID, path="/d", state="suspect", reason="r", since_us=2),
        ),
    ],
)
def test_absent_fields_at_the_end_mean_their_defaults(short: str, record: msgspec.Struct) -> None:
    assert decode(bytes.fromhex(short), type(record)) == record


def test_fields_of_a_later_release_at_the_end_are_ignored() -> None:
    assert decode(bytes.fromhex("95 01 02 c3 a16e 07"), DoomedRecord) == DoomedRecord(
        since_us=2, unlisted=True
    )


def test_a_counter_is_sixteen_bytes_of_twos_complement() -> None:
    assert counter_value(-2).hex() == "ff" * 15 + "fe"
    assert counter(counter_value(-2)) == -2
    assert counter(None) == 0


@pytest.mark.parametrize(
    ("checksum", "packed"),
    [
        (Checksum("CRC32", "FULL_OBJECT", b"\1\2\3\4"), "00 01020304"),
        (Checksum("CRC32C", "FULL_OBJECT", b"\1\2\3\4"), "01 01020304"),
        (Checksum("CRC64NVME", "FULL_OBJECT", b"\1" * 8), "02 0101010101010101"),
        (Checksum("SHA1", "FULL_OBJECT", b"\1" * 20), "03" + "01" * 20),
        (Checksum("SHA256", "COMPOSITE", b"\1" * 32, 258), "84" + "01" * 32 + "0102"),
    ],
)
def test_a_checksum_is_packed_as_the_page_shows(checksum: Checksum, packed: str) -> None:
    assert checksum.pack().hex() == packed.replace(" ", "")
    assert Checksum.unpack(bytes.fromhex(packed)) == checksum
