"""Signatures: what botocore signs is proven, and nothing else is.

The seed of random requests is printed; OBJSTORE_EDGE_SEED replays one.
"""

import hashlib
import hmac
import os
import random
import urllib.parse
from collections.abc import Callable

import pytest
from edge_signing import (
    DISABLED_ID,
    KEY_ID,
    NOW,
    OTHER_ID,
    OTHER_SECRET,
    REGION,
    SECRET,
    FakeDirectory,
    Signed,
    presign,
    sign,
)

from objstore.s3.errors import S3Fault
from objstore.s3.sigv4 import Verified, Verifier, amz_seconds, http_date_seconds, signing_key
from objstore.s3.target import canonical_query, canonical_query_of, parse_target
from tests.seed import SEED


def verifier(now: float = NOW) -> Verifier:
    return Verifier(FakeDirectory(), REGION, lambda: now)


async def verify(request: Signed, by: Verifier | None = None) -> Verified:
    target = parse_target(request.target, request.header("Host"))
    return await (by or verifier()).verify(request.method, target, request.proxy())


async def fault(request: Signed, by: Verifier | None = None) -> S3Fault:
    with pytest.raises(S3Fault) as caught:
        await verify(request, by)
    return caught.value


PATHS = [
    "/",
    "/bucket",
    "/bucket/",
    "/bucket/key",
    "/my-object//example//photo.user",
    "/bucket/../key",
    "/bucket/./a/b/.",
    "/bucket/a%20b",
    "/bucket/a%2Fb",
    "/bucket/%E2%98%83/%F0%9F%98%80",
    "/bucket/a%2Bb%25c%2526",
    "/bucket/~user/-_.",
    "/bucket/%00%01%7F",
    "/bucket/a%3Fb%23c",
    "/bucket/a%3Db%26c%3Bd%2Ce%27f%28g%29h%2Ai%21j%40k%24",
]
QUERIES = [
    "",
    "uploads=",
    "list-type=2&prefix=a%2Fb&delimiter=%2F",
    "prefix=%20%2B&marker=%E2%98%83",
    "b=2&a=1&a-b=3&A=4",
    "tagging=&versionId=null",
    "x-id=GetObject&partNumber=1&uploadId=abc",
]
HEADERS: list[dict[str, str]] = [
    {},
    {"x-amz-meta-a": "1", "X-Amz-Meta-B": "two  spaces   here"},
    {"Content-Type": "text/plain; charset=utf-8", "Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="},
    {"Range": "bytes=0-9", "x-amz-acl": "private"},
    {"x-amz-copy-source": "/bucket/a%20b?versionId=null"},
    {"x-amz-meta-empty": "", "Cache-Control": "no-cache"},
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("query", QUERIES)
async def test_what_botocore_signs_in_the_header_is_proven(path: str, query: str) -> None:
    for headers in HEADERS:
        for method in ("GET", "PUT"):
            request = sign(method, path, query=query, headers=headers, body=b"x" if method == "PUT" else b"")
            assert (await verify(request)).who.access_key_id == KEY_ID


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("query", QUERIES)
async def test_what_botocore_signs_in_the_query_is_proven(path: str, query: str) -> None:
    for headers in HEADERS[:3]:
        for method in ("GET", "PUT", "DELETE"):
            verified = await verify(presign(method, path, query=query, headers=headers))
            assert verified.presigned
            assert verified.payload == "UNSIGNED-PAYLOAD"


async def test_random_requests_signed_by_botocore_are_proven() -> None:
    seed = int(os.environ.get("OBJSTORE_EDGE_SEED", random.randrange(1 << 32)))
    print(f"OBJSTORE_EDGE_SEED={seed}")
    rng = random.Random(seed)
    alphabet = [chr(c) for c in range(1, 0x250)] + ["\u2603", "\U0001f600", "/", "/", "%", "+", " "]

    def word(size: int) -> str:
        return "".join(rng.choice(alphabet) for _ in range(rng.randrange(size)))

    by = verifier()
    for _ in range(300):
        path = "/b/" + urllib.parse.quote(word(40), safe="/~-_.")
        query = "&".join(
            f"{urllib.parse.quote(word(8) or 'q', safe='~')}={urllib.parse.quote(word(12), safe='~')}"
            for _ in range(rng.randrange(4))
        )
        headers = {f"x-amz-meta-{n}": "v" * rng.randrange(20) for n in range(rng.randrange(4))}
        for request in (sign("GET", path, query=query, headers=headers), presign("GET", path, query=query)):
            assert (await verify(request, by)).who.user == "u1"


async def test_an_example_from_the_documentation_is_proven() -> None:
    """AWS's page on the Authorization header, "Example: GET Object", as it is printed there."""
    directory = FakeDirectory()
    known = "AKIAIOSFODNN7EXAMPLE"
    credential = directory.keys[KEY_ID]
    directory.keys[known] = type(credential)("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", credential.principal)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    by = Verifier(directory, "us-east-1", lambda: 1369353600.0)
    request = Signed(
        "GET",
        "/test.txt",
        [
            ("Host", "examplebucket.s3.amazonaws.com"),
            ("Range", "bytes=0-9"),
            ("x-amz-content-sha256", empty),
            ("x-amz-date", "20130524T000000Z"),
            (
                "Authorization",
                f"AWS4-HMAC-SHA256 Credential={known}/20130524/us-east-1/s3/aws4_request,"
                "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
                "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
        ],
    )
    verified = await verify(request, by)
    assert verified.payload == empty


# --- Mutations -------------------------------------------------------------------------------------


def mutants(request: Signed, rng: random.Random) -> list[tuple[str, Signed]]:
    """Every single change that the signature must catch, and some random flips."""
    found: list[tuple[str, Signed]] = []

    def add(name: str, method: str, target: str, headers: list[tuple[str, str]]) -> None:
        found.append((name, Signed(method, target, headers, request.body)))

    for method in ("GET", "PUT", "POST", "DELETE", "HEAD", "get"):
        if method != request.method:
            add(f"method {method}", method, request.target, request.headers)
    path, mark, query = request.target.partition("?")
    for at in range(1, len(path)):
        changed = path[:at] + ("a" if path[at] != "a" else "b") + path[at + 1 :]
        if "%" not in path[at - 2 : at + 1]:
            add(f"path {at}", request.method, changed + mark + query, request.headers)
    places = [at for at, letter in enumerate(query) if letter.isalnum()]
    for at in rng.sample(places, min(80, len(places))):
        changed = query[:at] + ("a" if query[at] not in "aA" else "b") + query[at + 1 :]
        add(f"query {at}", request.method, path + mark + changed, request.headers)
    add("path grows", request.method, path + "/" + mark + query, request.headers)
    add("path //", request.method, "/" + path + mark + query, request.headers)
    add("query grows", request.method, request.target + ("&" if mark else "?") + "zz=1", request.headers)
    for name, value in request.headers:
        low = name.lower()
        others = [(k, v) for k, v in request.headers if k != name]
        if low == "content-length":
            continue
        add(f"{low} gone", request.method, request.target, others)
        add(f"{low} empty", request.method, request.target, [*others, (name, "")])
        for _ in range(12):
            if not value:
                break
            at = rng.randrange(len(value))
            flipped = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
            if flipped.split() != value.split() and "\x7f" not in flipped:
                add(f"{low} flipped at {at}", request.method, request.target, [*others, (name, flipped)])
        if low not in ("host",):
            add(f"{low} twice", request.method, request.target, [*request.headers, (name, value)])
    add("unsigned x-amz", request.method, request.target, [*request.headers, ("x-amz-meta-new", "1")])
    add("unsigned acl", request.method, request.target, [*request.headers, ("X-Amz-Acl", "public-read")])
    return found


@pytest.mark.parametrize("carrier", ["header", "query"])
async def test_every_single_mutation_of_a_signed_request_is_refused(carrier: str) -> None:
    seed = int(os.environ.get("OBJSTORE_EDGE_SEED", random.randrange(1 << 32)))
    print(f"OBJSTORE_EDGE_SEED={seed}")
    rng = random.Random(seed)
    by = verifier()
    count = 0
    for make in (sign, presign):
        if (make is sign) != (carrier == "header"):
            continue
        for path, query, headers in (
            ("/bucket/some/key", "versionId=null", {"x-amz-meta-a": "one", "Content-Type": "text/plain"}),
            ("/bucket/%E2%98%83", "prefix=a%2Fb&x=", {"Content-Type": "a/b", "x-amz-acl": "private"}),
        ):
            request = make("PUT", path, query=query, headers=headers, body=b"body")
            await verify(request, by)
            for name, mutant in mutants(request, rng):
                print(name, mutant)
                with pytest.raises(S3Fault) as refused:
                    await verify(mutant, by)
                assert refused.value.status in (400, 403), name
                count += 1
            await verify(request, by)
    assert count >= 200


# --- The checklist ---------------------------------------------------------------------------------


async def test_the_scope_must_be_ours_in_every_word() -> None:
    request = sign("GET", "/b/k")
    wrong = {
        "us-east-1/s3": ("eu-west-1/s3", "AuthorizationHeaderMalformed"),
        "/s3/": ("/iam/", "AuthorizationHeaderMalformed"),
        "aws4_request": ("aws4_requesT", "AuthorizationHeaderMalformed"),
        "/20261121/": ("/20261120/", "AuthorizationHeaderMalformed"),
        "AWS4-HMAC-SHA256 ": ("AWS4-HMAC-SHA512 ", "InvalidRequest"),
        "SignedHeaders=host;": ("SignedHeaders=", "AuthorizationHeaderMalformed"),
        "Credential=": ("Credental=", "AuthorizationHeaderMalformed"),
        ", Signature=": (", Signature=a, Signature=", "AuthorizationHeaderMalformed"),
    }
    for old, (new, code) in wrong.items():
        authorization = request.header("Authorization")
        assert old in authorization
        refused = await fault(request.with_header("Authorization", authorization.replace(old, new, 1)))
        assert (refused.status, refused.code) == (400, code), (old, refused)


async def test_another_region_is_named_with_the_right_one() -> None:
    refused = await fault(sign("GET", "/b/k", region="aws-global"))
    assert (
        refused.message
        == "The authorization header is malformed; the region 'aws-global' is wrong; expecting 'us-east-1'"
    )
    assert refused.fields == {"Region": "us-east-1"}


@pytest.mark.parametrize("offset_s", [-901, 901, -86400, 86400])
async def test_a_clock_that_is_off_by_more_than_15_minutes_is_refused(offset_s: int) -> None:
    refused = await fault(sign("GET", "/b/k", now=NOW + offset_s))
    assert (refused.status, refused.code) == (403, "RequestTimeTooSkewed")
    assert refused.fields["MaxAllowedSkewMilliseconds"] == "900000"


@pytest.mark.parametrize("offset_s", [-899, 0, 899])
async def test_a_clock_that_is_off_by_less_is_accepted(offset_s: int) -> None:
    await verify(sign("GET", "/b/k", now=NOW + offset_s))


async def test_an_unknown_key_and_a_disabled_key_are_refused_alike() -> None:
    for key_id in ("AKIANOBODY", DISABLED_ID):
        refused = await fault(sign("GET", "/b/k", key_id=key_id))
        assert (refused.status, refused.code) == (403, "InvalidAccessKeyId")
        assert refused.fields == {"AWSAccessKeyId": key_id}


async def test_the_key_of_one_user_does_not_sign_for_another() -> None:
    assert (
        await verify(sign("GET", "/b/k", key_id=OTHER_ID, secret=OTHER_SECRET))
    ).who.access_key_id == OTHER_ID
    refused = await fault(sign("GET", "/b/k", key_id=OTHER_ID))
    assert refused.code == "SignatureDoesNotMatch"


async def test_a_changed_secret_holds_from_the_next_request() -> None:
    directory = FakeDirectory()
    by = Verifier(directory, REGION, lambda: NOW)
    request = sign("GET", "/b/k")
    await verify(request, by)
    directory.keys[KEY_ID] = type(directory.keys[KEY_ID])("new", directory.keys[KEY_ID].principal)
    assert (await fault(request, by)).code == "SignatureDoesNotMatch"
    await verify(sign("GET", "/b/k", secret="new"), by)
    directory.keys.clear()
    assert (await fault(request, by)).code == "InvalidAccessKeyId"


async def test_headers_of_amazon_must_be_signed_and_are_listed_if_not() -> None:
    request = sign("GET", "/b/k")
    extra = Signed(request.method, request.target, [*request.headers, ("x-amz-z", "1"), ("x-amz-a", "2")])
    refused = await fault(extra)
    assert (refused.status, refused.code) == (403, "AccessDenied")
    assert refused.message == "There were headers present in the request which were not signed"
    assert refused.fields == {"HeadersNotSigned": "x-amz-a, x-amz-z"}


async def test_two_carriers_at_once_are_refused() -> None:
    request = sign("GET", "/b/k")
    for query in (
        "X-Amz-Signature=aa",
        "X-Amz-Algorithm=AWS4-HMAC-SHA256",
        "Signature=x",
        "AWSAccessKeyId=x",
    ):
        both = Signed("GET", f"/b/k?{query}", request.headers)
        refused = await fault(both)
        assert (refused.status, refused.code) == (400, "InvalidArgument")


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        ("", 403, "AccessDenied"),
        ("AWS HAHAHA", 400, "InvalidArgument"),
        ("AWS AKIA:sig", 400, "InvalidRequest"),
        ("Bearer abc", 400, "InvalidArgument"),
        ("AWS4-ECDSA-P256-SHA256 Credential=x", 400, "InvalidRequest"),
        ("AWS4-HMAC-SHA256", 400, "AuthorizationHeaderMalformed"),
        ("AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host", 400, "AuthorizationHeaderMalformed"),
        ("\u00e9", 400, "InvalidArgument"),
    ],
)
async def test_other_authorisations_are_refused_clearly(authorization: str, status: int, code: str) -> None:
    refused = await fault(sign("GET", "/b/k").with_header("Authorization", authorization))
    assert (refused.status, refused.code) == (status, code)


async def test_a_signature_that_is_not_ascii_is_a_mismatch_and_no_crash() -> None:
    request = sign("GET", "/b/k")
    authorization = request.header("Authorization")
    for signature in ("\u00e9" * 64, "\u0661" * 64, "A" * 64, "", "0" * 63, "0" * 65, "g" * 64):
        changed = authorization[:-64] + signature
        assert (await fault(request.with_header("Authorization", changed))).status in (400, 403)


async def test_a_signature_may_stand_anywhere_in_the_header_and_poisons_nothing() -> None:
    by = verifier()
    request = sign("GET", "/b/k")
    scheme, _, rest = request.header("Authorization").partition(" ")
    words = rest.split(", ")
    turned = request.with_header("Authorization", f"{scheme} {', '.join(reversed(words))}")
    await verify(turned, by)
    other = sign("GET", "/b/k", key_id=OTHER_ID, secret=OTHER_SECRET)
    turned_other = other.header("Authorization").partition(" ")[2].split(", ")
    turned_other_request = other.with_header("Authorization", f"{scheme} {', '.join(reversed(turned_other))}")
    assert (await verify(turned_other_request, by)).who.access_key_id == OTHER_ID
    assert (await verify(turned, by)).who.access_key_id == KEY_ID


async def test_the_payload_hash_is_needed_and_must_be_well_formed() -> None:
    request = sign("GET", "/b/k")
    refused = await fault(request.with_header("X-Amz-Content-SHA256", None))
    assert refused.message == "Missing required header for this request: x-amz-content-sha256"
    for value in ("unsigned-payload", "abc", "F" * 64, "UNSIGNED-PAYLOAD ,", "STREAMING-AWS4"):
        refused = await fault(request.with_header("X-Amz-Content-SHA256", value))
        assert (refused.status, refused.code) == (400, "InvalidArgument")


async def test_a_date_header_serves_where_no_amz_date_is() -> None:
    """Signed by hand: botocore always sends X-Amz-Date."""
    date = "Sat, 21 Nov 2026 22:26:40 GMT"
    assert http_date_seconds(date) == NOW
    canonical = "GET\n/b/k\n\ndate:" + date + "\nhost:h\n\ndate;host\nUNSIGNED-PAYLOAD"
    to_sign = (
        "AWS4-HMAC-SHA256\n20261121T222640Z\n20261121/us-east-1/s3/aws4_request\n"
        + hashlib.sha256(canonical.encode()).hexdigest()
    )
    signature = hmac.new(signing_key(SECRET, "20261121", REGION), to_sign.encode(), "sha256").hexdigest()
    headers = [
        ("Host", "h"),
        ("Date", date),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        (
            "Authorization",
            f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20261121/us-east-1/s3/aws4_request, "
            f"SignedHeaders=date;host, Signature={signature}",
        ),
    ]
    await verify(Signed("GET", "/b/k", headers))
    for bad in ("", "yesterday", "2026-11-21", "Sat, 21 Nov 2026 22:26:40 +0000", "\u0662\u0661"):
        changed = [(k, bad if k == "Date" else v) for k, v in headers]
        refused = await fault(Signed("GET", "/b/k", changed))
        assert refused.status == 403


async def test_session_tokens_are_refused() -> None:
    assert (await fault(sign("GET", "/b/k", headers={"x-amz-security-token": "t"}))).code == "InvalidToken"


# --- Presigned -------------------------------------------------------------------------------------


def change_query(request: Signed, name: str, value: str | None) -> Signed:
    path, _, query = request.target.partition("?")
    pairs = [p for p in query.split("&") if not p.startswith(name + "=")]
    if value is not None:
        pairs.append(f"{name}={value}")
    return Signed(request.method, path + "?" + "&".join(pairs), request.headers, request.body)


@pytest.mark.parametrize(
    "name", ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Expires"]
)
async def test_a_presigned_url_needs_every_parameter_once(name: str) -> None:
    request = presign("GET", "/b/k")
    refused = await fault(change_query(request, name, None))
    assert (refused.status, refused.code) == (400, "AuthorizationQueryParametersError")
    doubled = Signed("GET", f"{request.target}&{name}=x", request.headers)
    assert (await fault(doubled)).code == "AuthorizationQueryParametersError"


@pytest.mark.parametrize(
    ("expires", "status"),
    [("604801", 400), ("-1", 400), ("1_0", 400), ("+5", 400), ("%D9%A1", 400), ("", 400), ("9" * 5000, 400)],
)
async def test_a_presigned_lifetime_is_a_plain_number_of_at_most_a_week(expires: str, status: int) -> None:
    refused = await fault(change_query(presign("GET", "/b/k"), "X-Amz-Expires", expires))
    assert (refused.status, refused.code) == (status, "AuthorizationQueryParametersError")


async def test_a_presigned_url_lives_until_it_expires_and_not_longer() -> None:
    request = presign("GET", "/b/k", expires_s=60)
    await verify(request, verifier(NOW + 59))
    refused = await fault(request, verifier(NOW + 60))
    assert (refused.status, refused.code, refused.message) == (403, "AccessDenied", "Request has expired")
    assert refused.fields == {
        "X-Amz-Expires": "60",
        "Expires": "2026-11-21T22:27:40Z",
        "ServerTime": "2026-11-21T22:27:40Z",
    }


async def test_a_presigned_url_of_the_future_is_refused() -> None:
    refused = await fault(presign("GET", "/b/k", now=NOW + 1000))
    assert (refused.status, refused.code) == (403, "AccessDenied")


async def test_a_presigned_url_takes_no_unsigned_amazon_header() -> None:
    request = presign("PUT", "/b/k")
    refused = await fault(Signed("PUT", request.target, [*request.headers, ("x-amz-meta-a", "1")]))
    assert refused.fields == {"HeadersNotSigned": "x-amz-meta-a"}


async def test_an_unsigned_payload_word_cannot_turn_a_presigned_url_into_another() -> None:
    request = presign("PUT", "/b/k")
    word = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    extra = Signed("PUT", request.target, [*request.headers, ("x-amz-content-sha256", word)])
    assert (await verify(extra)).payload == word  # It describes the body; the signature stays what it was.


async def test_version_2_is_refused_clearly() -> None:
    headers = [("Host", "h")]
    refused = await fault(Signed("GET", "/b/k?AWSAccessKeyId=a&Signature=b&Expires=1", headers))
    assert (refused.status, refused.code) == (400, "InvalidRequest")
    assert "AWS4-HMAC-SHA256" in refused.message


async def test_nothing_at_all_is_access_denied() -> None:
    refused = await fault(Signed("GET", "/b/k", [("Host", "h")]))
    assert (refused.status, refused.code) == (403, "AccessDenied")


# --- Python's traps --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "2026112\u0661T222640Z",
        "2026111T112233Z",
        "20261121T222640",
        "20261121T222640Z\n",
        " 20261121T222640Z",
        "20261321T222640Z",
        "20261121T256060Z",
        "",
        "2026112 T222640Z",
    ],
)
def test_sloppy_dates_are_no_dates(text: str) -> None:
    assert amz_seconds(text) is None


def test_a_right_date_is_its_second() -> None:
    assert amz_seconds("20261121T222640Z") == NOW


@pytest.mark.parametrize(
    "raw", ["/b/%zz", "/b/%", "/b/%f", "/b/%ff", "/b/%C3", "/b/k?a=%ff", "/b/k?%zz", "b/k", "*"]
)
def test_a_target_that_does_not_decode_is_refused(raw: str) -> None:
    with pytest.raises(S3Fault) as caught:
        parse_target(raw, "h")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("raw", "bucket", "key"),
    [
        ("/b/a%2Fb", "b", "a/b"),
        ("/b/a/b", "b", "a/b"),
        ("/b/a%252Fb", "b", "a%2Fb"),
        ("/b//x", "b", "/x"),
        ("/b/../x", "b", "../x"),
        ("/b/./x", "b", "./x"),
        ("/b/x/", "b", "x/"),
        ("/b/a+b", "b", "a+b"),
        ("/b/%00", "b", "\0"),
        ("/b/%EF%BF%BD", "b", "\ufffd"),
        ("/b%2Fc/k", "b/c", "k"),
        ("/b", "b", ""),
        ("/b/", "b", ""),
        ("/", "", ""),
        ("/b/%2e%2e/x", "b", "../x"),
        ("http://h/b/k", "b", "k"),
    ],
)
def test_a_key_is_decoded_exactly_once_and_never_normalised(raw: str, bucket: str, key: str) -> None:
    target = parse_target(raw, "h")
    assert (target.bucket, target.key) == (bucket, key)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("/b/k?" + "&".join(["a"] * 129), "InvalidURI"),
        ("/b/k?" + "&" * 5000, "InvalidURI"),
        ("/b/" + "%41" * 1400, "KeyTooLongError"),
        ("/b" + "/%41" * 1100, "KeyTooLongError"),
    ],
)
def test_a_target_that_nobody_needs_costs_no_work_before_the_signature(raw: str, code: str) -> None:
    with pytest.raises(S3Fault) as raised:
        parse_target(raw, "h")
    assert (raised.value.status, raised.value.code) == (400, code)
    assert parse_target("/b/" + "%41" * 1024, "h").key == "A" * 1024
    assert len(parse_target("/b/k?" + "&".join(["a=1"] * 128), "h").pairs) == 128


def test_distinct_keys_never_collide() -> None:
    raws = ["/b/a%2525", "/b/a%25", "/b/a%C3%A9", "/b/ae%CC%81", "/b/a//b", "/b/a/b", "/b/a/./b", "/b/A"]
    keys = {parse_target(raw, "h").key for raw in raws}
    assert len(keys) == len(raws)


def test_a_query_is_decoded_once_and_its_first_value_wins() -> None:
    target = parse_target("/b?prefix=a%2Bb+c&prefix=z&flag&empty=&&x=%25", "h")
    assert target.query == {"prefix": "a+b c", "flag": "", "empty": "", "x": "%"}
    assert target.pairs.count(("prefix", "z")) == 1


@pytest.mark.parametrize(
    ("host", "raw", "bucket", "key"),
    [
        ("pics.s3.test:9000", "/a/b", "pics", "a/b"),
        ("PICS.S3.test", "/", "pics", ""),
        ("a.b.s3.test", "//k", "a.b", "/k"),
        ("s3.test", "/pics/a", "pics", "a"),
        ("evils3.test", "/pics/a", "pics", "a"),
        ("127.0.0.1:9000", "/pics/a", "pics", "a"),
        ("[::1]:9000", "/pics/a", "pics", "a"),
    ],
)
def test_virtual_hosts_name_buckets_under_configured_domains_only(
    host: str, raw: str, bucket: str, key: str
) -> None:
    target = parse_target(raw, host, ("s3.test",))
    assert (target.bucket, target.key) == (bucket, key)


async def test_virtual_host_requests_are_proven_over_their_own_path() -> None:
    request = sign("GET", "/a/b%20c", host="pics.s3.test:9000")
    target = parse_target(request.target, "pics.s3.test:9000", ("s3.test",))
    await verifier().verify("GET", target, request.proxy())
    assert (target.bucket, target.key) == ("pics", "a/b c")


Maker = Callable[..., Signed]


@pytest.mark.parametrize("make", [sign, presign])
async def test_raw_unicode_in_the_request_line_is_signed_as_its_bytes(make: Maker) -> None:
    request = make("GET", "/b/%E2%98%83")
    raw = request.target.replace("%E2%98%83", "\u2603".encode().decode("utf-8", "surrogateescape"))
    await verify(Signed("GET", raw, request.headers))


def test_the_canonical_query_of_a_target_is_that_of_its_words_however_they_are_escaped() -> None:
    source = random.Random(SEED)
    pieces = [*"abz019-_.~=&&&", "&a", "&a=", "=", "+", "/", "*", "é", "%", "%2", "%zz"]
    pieces += [f"%{byte:02X}" for byte in range(128)] + ["%2f", "%c3%A9", "%C3%A9", "%E2%98%83"]
    compared = 0
    for _ in range(4_000):
        raw = "".join(source.choices(pieces, [40] * 18 + [1] * (len(pieces) - 18), k=source.randrange(1, 12)))
        try:
            target = parse_target(f"/b?{raw}", "h")
        except S3Fault:
            continue  # A broken escape.
        compared += 1
        assert canonical_query_of(target) == canonical_query(target.pairs), f"seed {SEED}: {raw}"
    assert compared > 1_000
