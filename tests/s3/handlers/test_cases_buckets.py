"""The forty cases that stores get wrong: buckets, listings, and what is not there yet."""

import asyncio

import pytest

from objstore.blobs.topology import Layout, Policy
from objstore.objects.store import Store
from objstore.s3.routes import ROUTES
from tests.s3.handlers.client import Answer, Client


async def fill(s3: Client, *keys: str) -> None:
    for key in keys:
        assert (await s3("PUT", "bkt", key, body=key.encode())).status == 200


async def listed(s3: Client, **query: str) -> Answer:
    answer = await s3("GET", "bkt", query={name.replace("_", "-"): value for name, value in query.items()})
    assert answer.status == 200, answer.body
    return answer


# --- Buckets ---------------------------------------------------------------------------------------


async def test_buckets_are_made_found_listed_and_deleted(s3: Client) -> None:
    answer = await s3("PUT", "second")
    assert (answer.status, answer.headers["Location"], answer.body) == (200, "/second", b"")
    answer = await s3("HEAD", "second")
    assert (answer.status, answer.headers["x-amz-bucket-region"]) == (200, "us-east-1")
    answer = await s3("GET")
    assert answer.texts("Buckets/Bucket/Name") == ["bkt", "second"]
    assert (answer.text("Owner/ID"), answer.text("Owner/DisplayName")) == ("main", "main")
    answer = await s3("DELETE", "second")
    assert (answer.status, answer.body) == (204, b"")
    answer = await s3("DELETE", "second")
    assert (answer.status, answer.code, answer.fields) == (404, "NoSuchBucket", {"BucketName": "second"})
    assert answer.text("Message") == "The specified bucket does not exist"


async def test_buckets_are_listed_in_pages(s3: Client, other: Client) -> None:
    for name in ("aaa", "bbb", "ccc", "cc-d"):
        await s3("PUT", name)
    await other("PUT", "theirs")
    found, token = [], None
    for _ in range(10):
        query = {"max-buckets": "2"} | ({"continuation-token": token} if token else {})
        answer = await s3("GET", query=query)
        assert answer.status == 200
        found.append(answer.texts("Buckets/Bucket/Name"))
        token = answer.text("ContinuationToken")
        if token is None:
            break
    assert found == [["aaa", "bbb"], ["bkt", "cc-d"], ["ccc"]]
    answer = await s3("GET", query={"prefix": "cc"})
    assert answer.texts("Buckets/Bucket/Name") == ["cc-d", "ccc"]
    assert answer.text("Prefix") == "cc"
    assert (await s3("GET", query={"bucket-region": "eu-west-1"})).texts("Buckets/Bucket/Name") == []
    for query in ({"max-buckets": "0"}, {"max-buckets": "x"}, {"continuation-token": "rubbish"}):
        answer = await s3("GET", query=query)
        assert (answer.status, answer.code) == (400, "InvalidArgument")


@pytest.mark.parametrize(
    "name",
    [
        *("ab", "a" * 64, "Upper", "under_score", "192.168.0.1", "a..b", "a.-b", "a-.b", "-ab", "ab-"),
        *("xn--abc", "sthree-abc", "abc-s3alias", "abc--ol-s3", "abc--x-s3"),
    ],
)
async def test_case_25_bucket_names(s3: Client, name: str) -> None:
    answer = await s3("PUT", name)
    assert (answer.status, answer.code) == (400, "InvalidBucketName")


async def test_case_25_a_bucket_that_exists(s3: Client, other: Client) -> None:
    answer = await s3("PUT", "bkt")
    assert (answer.status, answer.code) == (409, "BucketAlreadyOwnedByYou")
    assert answer.fields == {"BucketName": "bkt"}
    answer = await other("PUT", "bkt")
    assert (answer.status, answer.code) == (409, "BucketAlreadyExists")


async def test_case_25_a_bucket_with_objects_stays(s3: Client) -> None:
    await fill(s3, "k")
    answer = await s3("DELETE", "bkt")
    assert (answer.status, answer.code, answer.fields) == (409, "BucketNotEmpty", {"BucketName": "bkt"})
    await s3("DELETE", "bkt", "k")
    await s3.upload("bkt", "unfinished", [b"x"])
    assert (await s3("DELETE", "bkt")).status == 204


@pytest.mark.parametrize(
    ("constraint", "code"),
    [
        ("us-east-1", "InvalidLocationConstraint"),
        ("foo", "InvalidLocationConstraint"),
        ("eu-west-1", "IllegalLocationConstraintException"),
        ("EU", "IllegalLocationConstraintException"),
    ],
)
async def test_case_25_location_constraints(s3: Client, constraint: str, code: str) -> None:
    body = (
        "<CreateBucketConfiguration><LocationConstraint>"
        f"{constraint}</LocationConstraint></CreateBucketConfiguration>"
    )
    answer = await s3("PUT", "elsewhere", body=body.encode())
    assert (answer.status, answer.code) == (400, code)
    assert (await s3("HEAD", "elsewhere")).status == 404


async def test_a_bucket_without_constraint_is_in_us_east_1(s3: Client) -> None:
    body = b'<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>'
    assert (await s3("PUT", "empty-document", body=body)).status == 200
    answer = await s3("GET", "bkt", query={"location": ""})
    assert (answer.status, answer.xml.tag, answer.xml.text) == (200, "LocationConstraint", None)


async def test_a_bucket_with_features_that_do_not_exist_is_not_made(s3: Client) -> None:
    for name, value in (
        ("x-amz-acl", "public-read"),
        ("x-amz-bucket-object-lock-enabled", "true"),
        ("x-amz-object-ownership", "ObjectWriter"),
        ("x-amz-grant-read", "id=1"),
    ):
        answer = await s3("PUT", "special", headers={name: value})
        assert (answer.status, answer.code) == (501, "NotImplemented"), name
    answer = await s3("PUT", "special", headers={"x-amz-object-ownership": "RandomValue"})
    assert answer.text("Message") == "Invalid x-amz-object-ownership header: RandomValue"
    assert (await s3("PUT", "special", body=b"<rubbish")).code == "MalformedXML"
    assert (await s3("HEAD", "special")).status == 404
    headers = {"x-amz-acl": "private", "x-amz-object-ownership": "BucketOwnerEnforced"}
    assert (await s3("PUT", "special", headers=headers)).status == 200


# --- 21, 22, 23: listings ----------------------------------------------------------------------------


async def test_case_21_keys_come_in_the_order_of_their_utf8_bytes(s3: Client) -> None:
    keys = ["a", "B", "é", "z", "\U0001d11e", "\uffc0", "Z", "a/b", "a.b"]
    await fill(s3, *keys)
    expected = sorted(keys, key=lambda key: key.encode())
    assert (await listed(s3)).texts("Contents/Key") == expected
    assert (await listed(s3, list_type="2")).texts("Contents/Key") == expected


async def test_case_21_rolled_up_prefixes_count_and_never_come_back(s3: Client) -> None:
    await fill(s3, "a", "b/1", "b/2", "b/3", "c", "d/1", "e")
    pages = []
    marker = ""
    for _ in range(10):
        answer = await listed(s3, delimiter="/", max_keys="2", marker=marker)
        pages.append(answer.texts("Contents/Key") + answer.texts("CommonPrefixes/Prefix"))
        if answer.text("IsTruncated") == "false":
            break
        marker = answer.text("NextMarker") or ""
    assert [sorted(page) for page in pages] == [["a", "b/"], ["c", "d/"], ["e"]]
    answer = await listed(s3, delimiter="/", marker="b/")
    assert answer.texts("CommonPrefixes/Prefix") == ["d/"]


async def test_case_21_delimiters_may_be_long_or_odd(s3: Client) -> None:
    await fill(s3, "a--b--c", "a--d", "e", "a b", "a%b")
    answer = await listed(s3, delimiter="--")
    assert answer.texts("CommonPrefixes/Prefix") == ["a--"]
    assert answer.texts("Contents/Key") == ["a b", "a%b", "e"]
    assert (await listed(s3, delimiter="--", prefix="a--")).texts("CommonPrefixes/Prefix") == ["a--b--"]
    assert (await listed(s3, delimiter=" ")).texts("CommonPrefixes/Prefix") == ["a "]
    assert (await listed(s3, delimiter="%")).texts("CommonPrefixes/Prefix") == ["a%"]
    answer = await listed(s3, delimiter="")
    assert (len(answer.texts("Contents/Key")), answer.text("Delimiter")) == (5, None)


async def test_case_22_version_1_has_a_next_marker_only_with_a_delimiter(s3: Client) -> None:
    await fill(s3, "a", "b", "c")
    answer = await listed(s3, max_keys="2")
    assert (answer.text("IsTruncated"), answer.text("NextMarker")) == ("true", None)
    assert (answer.text("Marker"), answer.text("MaxKeys"), answer.text("Name")) == ("", "2", "bkt")
    answer = await listed(s3, max_keys="2", delimiter="/")
    assert (answer.text("IsTruncated"), answer.text("NextMarker")) == ("true", "b")
    assert (await listed(s3, marker="b")).texts("Contents/Key") == ["c"]
    assert answer.texts("Contents/Owner/DisplayName") == ["main", "main"]


async def test_case_22_version_2_counts_and_continues(s3: Client) -> None:
    await fill(s3, "a", "b/1", "b/2", "c", "d")
    answer = await listed(s3, list_type="2", max_keys="2", delimiter="/")
    assert (answer.text("KeyCount"), answer.text("IsTruncated")) == ("2", "true")
    token = answer.text("NextContinuationToken") or ""
    assert token
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~")
    answer = await listed(s3, list_type="2", delimiter="/", continuation_token=token, start_after="zzz")
    assert answer.texts("Contents/Key") == ["c", "d"]
    assert answer.text("ContinuationToken") == token
    assert answer.text("NextContinuationToken") is None
    answer = await listed(s3, list_type="2", start_after="b/1")
    assert answer.texts("Contents/Key") == ["b/2", "c", "d"]
    assert answer.text("StartAfter") == "b/1"
    assert (await listed(s3, list_type="2", fetch_owner="true")).texts("Contents/Owner/ID") == ["main"] * 5
    assert (await listed(s3, list_type="2")).texts("Contents/Owner/ID") == []


async def test_case_22_a_wrong_token_is_refused(s3: Client) -> None:
    for token in ("rubbish", "YWJj", "é", "A" * 5000):
        answer = await s3("GET", "bkt", query={"list-type": "2", "continuation-token": token})
        assert (answer.status, answer.code) == (400, "InvalidArgument")
        assert answer.text("Message") == "The continuation token provided is incorrect"
        assert answer.fields == {"ArgumentName": "continuation-token"}


async def test_case_22_max_keys(s3: Client) -> None:
    await fill(s3, "a", "b")
    for kind in ({}, {"list_type": "2"}):
        answer = await listed(s3, max_keys="0", **kind)
        assert (answer.text("IsTruncated"), answer.texts("Contents/Key")) == ("false", [])
        assert (await listed(s3, max_keys="2147483647", **kind)).text("MaxKeys") == "1000"
    for value in ("blah", "-1", "2147483648", "1_0", ""):
        answer = await s3("GET", "bkt", query={"max-keys": value})
        assert (answer.status, answer.code) == (400, "InvalidArgument")
        assert answer.fields == {"ArgumentName": "max-keys", "ArgumentValue": value}


@pytest.mark.parametrize("query", [{}, {"list-type": "2"}, {"versions": ""}, {"uploads": ""}])
async def test_case_23_encoding_types(s3: Client, query: dict[str, str]) -> None:
    for value in ("value", ""):
        answer = await s3("GET", "bkt", query={**query, "encoding-type": value})
        assert (answer.status, answer.code) == (400, "InvalidArgument")
        assert answer.text("Message") == "Invalid Encoding Method specified in Request"
        assert answer.fields == {"ArgumentName": "encoding-type", "ArgumentValue": value}


async def test_case_23_url_encoding_covers_every_name(s3: Client) -> None:
    await fill(s3, "p é/a b", "p é/c+d", "p é/sub/x")
    answer = await listed(
        s3, encoding_type="url", prefix="p é/", delimiter="/", marker="p é/A B", max_keys="2"
    )
    assert answer.texts("Contents/Key") == ["p%20%C3%A9/a%20b", "p%20%C3%A9/c%2Bd"]
    assert answer.text("Prefix") == "p%20%C3%A9/"
    assert answer.text("Delimiter") == "/"
    assert answer.text("Marker") == "p%20%C3%A9/A%20B"
    assert answer.text("NextMarker") == "p%20%C3%A9/c%2Bd"
    assert answer.text("EncodingType") == "url"
    answer = await listed(s3, encoding_type="url", list_type="2", delimiter=" ", start_after="a b")
    assert answer.texts("CommonPrefixes/Prefix") == ["p%20"]
    assert (answer.text("Delimiter"), answer.text("StartAfter")) == ("%20", "a%20b")
    assert (await listed(s3)).text("EncodingType") is None


async def test_case_23_a_key_that_xml_cannot_carry_makes_the_page_url_encoded(s3: Client) -> None:
    await fill(s3, "a\x01b", "plain<&>")
    answer = await listed(s3)
    assert answer.text("EncodingType") == "url"
    assert answer.texts("Contents/Key") == ["a%01b", "plain%3C%26%3E"]
    await s3("DELETE", "bkt", "a\x01b")
    answer = await listed(s3)
    assert (answer.text("EncodingType"), answer.texts("Contents/Key")) == (None, ["plain<&>"])


async def test_an_entry_shows_etag_size_time_and_checksum(s3: Client) -> None:
    await fill(s3, "k")
    head = await s3("HEAD", "bkt", "k")
    answer = await listed(s3)
    assert answer.text("Contents/ETag") == head.headers["ETag"]
    assert answer.text("Contents/Size") == "1"
    assert answer.text("Contents/StorageClass") == "STANDARD"
    assert answer.text("Contents/ChecksumAlgorithm") == "CRC64NVME"
    assert (answer.text("Contents/LastModified") or "").endswith(".000Z")


@pytest.mark.parametrize("query", [{"list-type": "2"}, {}, {"versions": ""}])
async def test_a_listing_shows_the_class_that_each_object_has(
    s3: Client, store: Store, query: dict[str, str]
) -> None:
    store.placing.layout = Layout(1, {}, {"cold": Policy(name="cold", storage_class="COLD")})
    await fill(s3, "a", "c")
    assert (await s3("PUT", "bkt", "b", headers={"x-amz-storage-class": "COLD"}, body=b"b")).status == 200
    answer = await s3("GET", "bkt", query=query)
    element = "Version" if "versions" in query else "Contents"
    assert answer.texts(f"{element}/StorageClass") == ["STANDARD", "COLD", "STANDARD"]


async def test_a_listing_of_nothing(s3: Client) -> None:
    answer = await listed(s3, prefix="none")
    assert (answer.text("Prefix"), answer.texts("Contents/Key"), answer.text("IsTruncated")) == (
        "none",
        [],
        "false",
    )
    answer = await s3("GET", "no-such-bucket")
    assert (answer.status, answer.code) == (404, "NoSuchBucket")
    answer = await s3("GET", "no-such-bucket", query={"max-keys": "0"})
    assert (answer.status, answer.code) == (404, "NoSuchBucket")
    answer = await s3("GET", "bkt", query={"list-type": "3"})
    assert (answer.status, answer.code) == (400, "InvalidArgument")


# --- 19: ListObjectVersions ----------------------------------------------------------------------------


async def test_case_19_versions_come_in_pages(s3: Client) -> None:
    await fill(s3, "a", "b/1", "b/2", "c", "d")
    pages, markers = [], {}
    for _ in range(10):
        answer = await listed(s3, versions="", delimiter="/", max_keys="2", **markers)
        pages.append(answer.texts("Version/Key") + answer.texts("CommonPrefixes/Prefix"))
        assert set(answer.texts("Version/VersionId")) <= {"null"}
        assert set(answer.texts("Version/IsLatest")) <= {"true"}
        if answer.text("IsTruncated") == "false":
            break
        markers = {"key_marker": answer.text("NextKeyMarker") or ""}
        if version := answer.text("NextVersionIdMarker"):
            markers["version_id_marker"] = version
    assert pages == [["a", "b/"], ["c", "d"]]


async def test_case_19_a_version_marker_needs_a_key_marker(s3: Client) -> None:
    answer = await s3("GET", "bkt", query={"versions": "", "version-id-marker": "abc"})
    assert (answer.status, answer.code) == (400, "InvalidArgument")
    assert answer.text("Message") == "A version-id marker cannot be specified without a key marker."
    assert answer.fields == {"ArgumentName": "version-id-marker", "ArgumentValue": "abc"}


# --- 38, 39: what is not there -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "code"),
    [
        ("policy", "NoSuchBucketPolicy"),
        ("tagging", "NoSuchTagSet"),
        ("lifecycle", "NoSuchLifecycleConfiguration"),
        ("cors", "NoSuchCORSConfiguration"),
        ("website", "NoSuchWebsiteConfiguration"),
        ("object-lock", "ObjectLockConfigurationNotFoundError"),
        ("publicAccessBlock", "NoSuchPublicAccessBlockConfiguration"),
        ("encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("replication", "ReplicationConfigurationNotFoundError"),
    ],
)
async def test_case_39_a_configuration_that_is_not_set_is_404(s3: Client, flag: str, code: str) -> None:
    answer = await s3("GET", "bkt", query={flag: ""})
    assert (answer.status, answer.code, answer.fields) == (404, code, {"BucketName": "bkt"})
    answer = await s3("GET", "no-such-bucket", query={flag: ""})
    assert (answer.status, answer.code) == (404, "NoSuchBucket")


async def test_a_bucket_that_was_never_versioned_says_so(s3: Client) -> None:
    answer = await s3("GET", "bkt", query={"versioning": ""})
    assert (answer.status, answer.xml.tag, list(answer.xml)) == (200, "VersioningConfiguration", [])
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    answer = await s3("PUT", "bkt", query={"versioning": ""}, body=body)
    assert (answer.status, answer.code) == (501, "NotImplemented")


async def test_a_bucket_belongs_to_its_owner_alone(s3: Client) -> None:
    answer = await s3("GET", "bkt", query={"ownershipControls": ""})
    assert answer.texts("Rule/ObjectOwnership") == ["BucketOwnerEnforced"]


async def test_the_acl_is_the_owners_and_only_what_it_says_can_be_set(s3: Client) -> None:
    await fill(s3, "k")
    for key in ("", "k"):
        answer = await s3("GET", "bkt", key, query={"acl": ""})
        assert answer.status == 200
        assert answer.texts("AccessControlList/Grant/Permission") == ["FULL_CONTROL"]
        assert answer.text("AccessControlList/Grant/Grantee/ID") == answer.text("Owner/ID") == "main"
        answer = await s3("PUT", "bkt", key, query={"acl": ""}, headers={"x-amz-acl": "private"})
        assert answer.status == 200
        answer = await s3("PUT", "bkt", key, query={"acl": ""}, headers={"x-amz-acl": "public-read"})
        assert (answer.status, answer.code) == (501, "NotImplemented")
        answer = await s3("PUT", "bkt", key, query={"acl": ""}, body=b"<AccessControlPolicy/>")
        assert answer.status == 501
    assert (await s3("GET", "bkt", "none", query={"acl": ""})).code == "NoSuchKey"


async def test_case_38_object_lock_is_not_there(s3: Client) -> None:
    await fill(s3, "k")
    for flag in ("retention", "legal-hold"):
        answer = await s3("GET", "bkt", "k", query={flag: ""})
        assert (answer.status, answer.code) == (400, "InvalidRequest")
        assert answer.text("Message") == "Bucket is missing Object Lock Configuration"
        assert (await s3("PUT", "bkt", "k", query={flag: ""}, body=b"<x/>")).status == 501
    assert (await s3("GET", "bkt", "k")).body == b"k"


async def test_everything_that_has_no_handler_answers_501_and_changes_nothing(s3: Client) -> None:
    await fill(s3, "k")
    for route in ROUTES:
        if route.handler is not None:
            continue
        bucket = "" if route.target == "service" else "bkt"
        key = "k" if route.target == "object" else ""
        query = {route.flag: ""} if route.flag else {}
        headers = {route.header: "bkt/k"} if route.header else {}
        answer = await s3(route.method, bucket, key, query=query, headers=headers, body=b"")
        assert (answer.status, answer.code) == (501, "NotImplemented"), route
    assert (await s3("GET", "bkt", "k")).body == b"k"


async def test_case_39_unknown_sub_resources_are_501_and_change_nothing(s3: Client) -> None:
    await fill(s3, "k")
    for method, key in (("PUT", "k"), ("DELETE", "k"), ("GET", "k"), ("GET", ""), ("DELETE", "")):
        answer = await s3(method, "bkt", key, query={"frobnicate": ""}, body=b"")
        assert (answer.status, answer.code) == (501, "NotImplemented")
    assert (await s3("GET", "bkt", "k")).body == b"k"


async def test_many_listings_at_once_do_not_mix(s3: Client) -> None:
    await fill(s3, *(f"p{n}/{m}" for n in range(4) for m in range(5)))
    answers = await asyncio.gather(*(listed(s3, prefix=f"p{n % 4}/") for n in range(16)))
    for number, answer in enumerate(answers):
        assert answer.texts("Contents/Key") == [f"p{number % 4}/{m}" for m in range(5)]
