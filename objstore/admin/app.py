"""The admin port: health, metrics, and what operates the store; the rest of the API is `admin/gate.py`'s.

It says who may (the token; health is open, metrics if the operator wants it so) and turns requests into
calls of what it was given. It knows no process and no socket file: `processes/upkeep.py` hands it functions.

Concurrency: one event loop, the upkeep process's. Every answer is small; no request holds a lock.
"""

import hmac
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from objstore.admin.gate import Gate
from objstore.admin.problems import Problem as Problem
from objstore.admin.problems import problem_answer
from objstore.audit.log import Deed
from objstore.errors import BadArgument, Rejected, StoreError, Unavailable

log = logging.getLogger(__name__)

BODY_SIZE_MAX = 64 * 1024  # Bytes; ours have a few hundred.
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAdmin:
    """What a cluster's gateway has beside the rest."""

    status: Callable[[], Awaitable[Json]]
    token: Callable[[str, str], Awaitable[Json]]  # Role (empty: node), and a member that comes back.
    members: Callable[[], Awaitable[list[Json]]]
    remove: Callable[[str, bool], Awaitable[Json]]  # Name or id; True: its disks are given up with it.
    renew: Callable[[], Awaitable[Json]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SitesAdmin:
    """Buckets that are replicated to other stores, and replicas; each by its name."""

    replication: Callable[[], Awaitable[list[Json]]]
    replicated: Callable[[str], Awaitable[Json]]  # With the oldest keys that its target lacks.
    set_replication: Callable[[str, Mapping[str, str]], Awaitable[Json]]
    remove_replication: Callable[[str], Awaitable[Json]]
    resync_replication: Callable[[str], Awaitable[Json]]
    promote_replica: Callable[[str], Awaitable[Json]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesAdmin:
    """The storage nodes of a cluster; each by its name or the beginning of its id."""

    nodes: Callable[[], Awaitable[list[Json]]]
    node: Callable[[str], Awaitable[Json]]
    drain: Callable[[str, bool], Awaitable[Json]]  # True: leave it as it is after all.
    prospect: Callable[[str], Awaitable[Json]]  # What removing it by force would lose, how to confirm.
    remove: Callable[[str, str], Awaitable[Json]]  # With the confirmation; empty: only if it is empty.


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyAdmin:
    """The audit of where bytes lie."""

    begin: Callable[[str], Awaitable[Json]]  # Bucket; empty: all volumes.
    status: Callable[[], Awaitable[Json]]
    rows: Callable[[int], Awaitable[Json]]  # Of volumes behind this one.


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplianceAdmin:
    """What a compliance report says of the store itself."""

    begin: Callable[[], Awaitable[Json]]
    status: Callable[[], Awaitable[Json]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutAdmin:
    """Where machines stand, pools and placement policies: staged, shown as a plan, applied, reverted."""

    show: Callable[[], Awaitable[Json]]
    machine: Callable[[str, Mapping[str, str]], Awaitable[Json]]  # Name or id; site, rack, pool, ...
    policy: Callable[[str, Mapping[str, str]], Awaitable[Json]]  # Name; sites, pool, spread, ...
    plan: Callable[[], Awaitable[Json]]
    apply: Callable[[int], Awaitable[Json]]  # The version that was planned.
    revert: Callable[[], Awaitable[Json]]
    place: Callable[[str, str, bool], Awaitable[Json]]  # Bucket, policy; True: of new objects only.


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationAdmin:
    """Another master key takes over: what older ones sealed is sealed anew."""

    begin: Callable[[], Awaitable[Json]]
    status: Callable[[], Awaitable[Json]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """What the port is made of."""

    token: str
    metrics_public: bool
    ready: Callable[[], Awaitable[Json]]  # {"ready": bool, "status": words, ...}
    cluster: Callable[[], Awaitable[Json]]  # {"writable": bool, "readable": bool, "status": words, ...}
    metrics: Callable[[], Awaitable[bytes]]
    status: Callable[[], Awaitable[Json]]
    doctor: Callable[[], Awaitable[list[Json]]]
    upkeep: Callable[[], Awaitable[Json]]
    copy_metadata: Callable[[], Awaitable[Json]]
    disks: Callable[[], Awaitable[list[Json]]]
    verify_disk: Callable[[int], Awaitable[Json]]
    add_disk: Callable[[str], Awaitable[Json]]  # Path.
    replace_disk: Callable[[int, str], Awaitable[Json]]  # Number of the old one, path of the new one.
    drain_disk: Callable[[int, bool], Awaitable[Json]]  # True: leave it as it is after all.
    remove_disk: Callable[[int], Awaitable[Json]]
    prospect_of_disk: Callable[[int], Awaitable[Json]]  # What forgetting it would mean, how to confirm.
    forget_disk: Callable[[int, str], Awaitable[Json]]  # Number, confirmation.
    safe_to_stop: Callable[[list[str]], Awaitable[Json]]  # Names of machines, numbers of disks.
    volumes: Callable[[bool], Awaitable[list[Json]]]  # True: only damaged ones.
    volume: Callable[[int], Awaitable[Json]]
    check_volumes: Callable[[list[int]], Awaitable[Json]]  # Ids; none: the damaged ones.
    check: Callable[[], Awaitable[Json]]  # The check under way, or the last one.
    clustered: ClusterAdmin | None = None  # None: one machine.
    nodes: NodesAdmin | None = None
    sites: SitesAdmin | None = None
    residency: ResidencyAdmin | None = None
    compliance: ComplianceAdmin | None = None
    layout: LayoutAdmin | None = None
    rotation: RotationAdmin | None = None
    gate: Gate | None = None  # The versioned API: tenants, users, keys and what is rented.
    # What is about to be done by a request with the token, or what became of it: for the audit log.
    note: Callable[[Deed, str], Awaitable[None]] | None = None


def handler(admin: Admin) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """The port's one request handler, for `web.Server`."""
    routes = _routes(admin)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await _dispatch(admin, routes, request)
        except Problem as problem:
            return problem_answer(problem.status, problem.detail, problem.errors)
        except StoreError as failure:
            if (status := _status_of(failure)) == 500:
                log.error("admin request failed", extra={"path": request.path, "failure": repr(failure)})
            return problem_answer(status, str(failure))
        except Exception:
            log.exception("admin request failed", extra={"path": request.path})
            return problem_answer(500, "a bug; see the store's log")

    return handle


Verb = Callable[[web.BaseRequest, Sequence[str]], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: re.Pattern[str]
    open: bool  # Needs no token.
    verb: Verb


def _routes(admin: Admin) -> list[Route]:
    async def live(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json({"status": "alive"})

    async def ready(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        found = await admin.ready()
        return _json(found, 200 if found["ready"] else 503)

    async def cluster(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        found = await admin.cluster()
        fine = found["readable"] if "read" in request.query else found["writable"]
        return _json(found, 200 if fine else 503)

    async def metrics(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return web.Response(
            body=await admin.metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def status(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.status())

    async def doctor(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json({"findings": await admin.doctor()})

    async def upkeep(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.upkeep())

    async def copy_metadata(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.copy_metadata())

    async def disks(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json({"disks": await admin.disks()})

    async def verify_disk(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.verify_disk(int(parts[0])))

    async def add_disk(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(request, required=("path",), optional=())
        return _json(await admin.add_disk(given["path"]), 201)

    async def replace_disk(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(request, required=("path",), optional=())
        return _json(await admin.replace_disk(int(parts[0]), given["path"]), 201)

    async def drain_disk(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.drain_disk(int(parts[0]), parts[1] == "undrain"))

    async def remove_disk(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.remove_disk(int(parts[0])))

    async def prospect(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.prospect_of_disk(int(parts[0])))

    async def forget_disk(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(request, required=("confirm",), optional=())
        return _json(await admin.forget_disk(int(parts[0]), given["confirm"]))

    async def volumes(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json({"volumes": await admin.volumes("damaged" in request.query)})

    async def volume(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.volume(int(parts[0])))

    async def check_volumes(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        wanted = re.findall("[0-9]{1,19}", request.query.get("volumes", ""), re.ASCII)
        return _json(await admin.check_volumes([int(number) for number in wanted]), 202)

    async def check(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.check())

    def clustered() -> ClusterAdmin:
        if admin.clustered is None:
            raise Problem(
                409, "this store is one machine: objstore cluster init and cluster.listen make it a gateway"
            )
        return admin.clustered

    async def cluster_status(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await clustered().status())

    async def join_token(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(request, required=(), optional=("role", "member"))
        return _json(await clustered().token(given.get("role", ""), given.get("member", "")), 201)

    async def members(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json({"members": await clustered().members()})

    async def remove_member(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(request, required=(), optional=("disks",))
        if given.get("disks", "") not in ("", "lost"):
            raise Problem(400, 'disks: "lost", or nothing')
        return _json(await clustered().remove(parts[0], given.get("disks") == "lost"))

    def storage_nodes() -> NodesAdmin:
        clustered()
        assert admin.nodes is not None
        return admin.nodes

    async def nodes(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json({"nodes": await storage_nodes().nodes()})

    async def node(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await storage_nodes().node(parts[0]))

    async def drain_node(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await storage_nodes().drain(parts[0], parts[1] == "undrain"))

    async def prospect_of_node(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await storage_nodes().prospect(parts[0]))

    async def remove_node(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(request, required=(), optional=("confirm",))
        return _json(await storage_nodes().remove(parts[0], given.get("confirm", "")))

    async def safe_to_stop(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await admin.safe_to_stop(request.query.getall("what", [])))

    async def renew_authority(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await clustered().renew(), 202)

    def sites() -> SitesAdmin:
        assert admin.sites is not None
        return admin.sites

    async def replication(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json({"buckets": await sites().replication()})

    async def replicated(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await sites().replicated(parts[0]))

    async def set_replication(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(
            request,
            required=("endpoint", "bucket", "access_key", "secret_key"),
            optional=("region", "site", "insecure", "overwrite"),
        )
        return _json(await sites().set_replication(parts[0], given), 201)

    async def change_replication(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        bucket, verb = parts
        await _body(request, required=(), optional=())
        verbs = {
            "remove": sites().remove_replication,
            "resync": sites().resync_replication,
            "promote": sites().promote_replica,
        }
        return _json(await verbs[verb](bucket))

    def layout() -> LayoutAdmin:
        assert admin.layout is not None
        return admin.layout

    async def show_layout(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await layout().show())

    async def plan_layout(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await layout().plan())

    async def stage_machine(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(request, required=(), optional=("site", "rack", "pool", "weight", "drain"))
        return _json(await layout().machine(parts[0], given))

    async def stage_policy(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        fields = ("sites", "pool", "spread", "require", "codec", "class", "drop")
        return _json(await layout().policy(parts[0], await _body(request, required=(), optional=fields)))

    async def apply_layout(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        version = (await _body(request, required=("version",), optional=()))["version"]
        if not re.fullmatch("[0-9]{1,18}", version, re.ASCII):
            raise Problem(400, "version: the number of the plan")
        return _json(await layout().apply(int(version)))

    async def revert_layout(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await layout().revert())

    async def place_bucket(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        given = await _body(request, required=("policy",), optional=("new_only",))
        return _json(await layout().place(parts[0], given["policy"], given.get("new_only") == "true"))

    def residency() -> ResidencyAdmin:
        assert admin.residency is not None
        return admin.residency

    async def begin_audit(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await residency().begin(request.query.get("bucket", "")), 202)

    async def audit(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await residency().status())

    async def audited_volumes(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        after = request.query.get("after", "0")
        if not re.fullmatch("[0-9]{1,18}", after, re.ASCII):
            raise Problem(400, "after: the number of a volume")
        return _json(await residency().rows(int(after)))

    def compliance() -> ComplianceAdmin:
        assert admin.compliance is not None
        return admin.compliance

    async def begin_compliance(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await compliance().begin(), 202)

    async def show_compliance(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await compliance().status())

    def rotation() -> RotationAdmin:
        assert admin.rotation is not None
        return admin.rotation

    async def rotate_master_key(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await rotation().begin(), 202)

    async def master_key(request: web.BaseRequest, parts: Sequence[str]) -> web.StreamResponse:
        return _json(await rotation().status())

    def route(method: str, path: str, verb: Verb, *, open_: bool = False) -> Route:
        return Route(method, re.compile(path, re.ASCII), open_, verb)

    name = r"([A-Za-z0-9._@+=,-]{1,128})"  # Whatever iam/names.py lets through.
    return [
        # The second names are MinIO's, so that probes survive a migration.
        route("GET", "/health/live|/minio/health/live", live, open_=True),
        route("GET", "/health/ready|/minio/health/ready", ready, open_=True),
        route("GET", "/health/cluster|/minio/health/cluster", cluster, open_=True),
        route("GET", "/metrics", metrics, open_=admin.metrics_public),
        route("GET", "/api/v1/status", status),
        route("GET", "/api/v1/doctor", doctor),
        route("GET", "/api/v1/upkeep", upkeep),
        route("POST", "/api/v1/meta/copy", copy_metadata),
        route("GET", "/api/v1/disks", disks),
        route("POST", "/api/v1/disks/([0-9]{1,5})/verify", verify_disk),
        route("POST", "/api/v1/disks", add_disk),
        route("POST", "/api/v1/disks/([0-9]{1,5})/replace", replace_disk),
        route("POST", "/api/v1/disks/([0-9]{1,5})/(drain|undrain)", drain_disk),
        route("POST", "/api/v1/disks/([0-9]{1,5})/remove", remove_disk),
        route("GET", "/api/v1/disks/([0-9]{1,5})/forget", prospect),
        route("POST", "/api/v1/disks/([0-9]{1,5})/forget", forget_disk),
        route("GET", "/api/v1/safe-to-stop", safe_to_stop),
        route("GET", "/api/v1/nodes", nodes),
        route("GET", f"/api/v1/nodes/{name}", node),
        route("POST", f"/api/v1/nodes/{name}/(drain|undrain)", drain_node),
        route("GET", f"/api/v1/nodes/{name}/remove", prospect_of_node),
        route("POST", f"/api/v1/nodes/{name}/remove", remove_node),
        route("GET", "/api/v1/volumes", volumes),
        route("GET", "/api/v1/volumes/([0-9]{1,19})", volume),
        route("GET", "/api/v1/volumes/check", check),
        route("POST", "/api/v1/volumes/check", check_volumes),
        route("GET", "/api/v1/cluster", cluster_status),
        route("POST", "/api/v1/cluster/tokens", join_token),
        route("GET", "/api/v1/cluster/members", members),
        route("POST", f"/api/v1/cluster/members/{name}/remove", remove_member),
        route("POST", "/api/v1/cluster/renew", renew_authority),
        route("GET", "/api/v1/replication", replication),
        route("GET", f"/api/v1/replication/{name}", replicated),
        route("POST", f"/api/v1/replication/{name}", set_replication),
        route("POST", f"/api/v1/replication/{name}/(remove|resync|promote)", change_replication),
        route("GET", "/api/v1/layout", show_layout),
        route("GET", "/api/v1/layout/plan", plan_layout),
        route("POST", f"/api/v1/layout/machines/{name}", stage_machine),
        route("POST", f"/api/v1/layout/policies/{name}", stage_policy),
        route("POST", "/api/v1/layout/apply", apply_layout),
        route("POST", "/api/v1/layout/revert", revert_layout),
        route("POST", f"/api/v1/buckets/{name}/policy", place_bucket),
        route("GET", "/api/v1/master-key", master_key),
        route("POST", "/api/v1/master-key/rotate", rotate_master_key),
        route("POST", "/api/v1/audit/residency", begin_audit),
        route("GET", "/api/v1/audit/residency", audit),
        route("GET", "/api/v1/audit/residency/volumes", audited_volumes),
        route("POST", "/api/v1/compliance", begin_compliance),
        route("GET", "/api/v1/compliance", show_compliance),
    ]


def _status_of(failure: StoreError) -> int:
    if isinstance(failure, Rejected):
        return 400 if isinstance(failure, BadArgument) else 409
    return 503 if isinstance(failure, Unavailable) else 500


async def _dispatch(admin: Admin, routes: Sequence[Route], request: web.BaseRequest) -> web.StreamResponse:
    if admin.gate is not None and (answer := await admin.gate.answer(request)) is not None:
        return answer
    found = False
    allowed = _has_token(admin, request)
    for route in routes:
        match = route.path.fullmatch(request.path)
        if match is None or not (route.open or allowed):
            continue
        found = True
        if request.method == route.method or (request.method == "HEAD" and route.method == "GET"):
            if request.method == "POST":
                return await _noted(admin, route, request, match.groups())
            return await route.verb(request, match.groups())
    if not found and not allowed:  # Whether the path exists is not for strangers.
        raise Problem(
            401, "a token is needed: Authorization: Bearer TOKEN (objstore token shows the admin token)"
        )
    raise Problem(405 if found else 404, f"no {request.method} {request.path} here")


async def _noted(
    admin: Admin, route: Route, request: web.BaseRequest, parts: Sequence[str]
) -> web.StreamResponse:
    """An act on machines: in the audit log before it begins and when it has ended.

    What keeps a store alive is not kept from being done by a log that cannot be written: metadata may be the
    very thing that is to be mended. Then the act is in the process's log only.
    """
    deed = Deed(
        who="operator",
        action=route.verb.__name__,
        target=request.path.removeprefix("/api/v1/"),
        source=request.remote or "",
        request=os.urandom(8).hex(),
    )
    await _note(admin, deed, "begun")
    try:
        answer = await route.verb(request, parts)
    except Exception as failure:
        await _note(admin, deed, f"failed: {failure}")
        raise
    await _note(admin, deed, "done")
    return answer


async def _note(admin: Admin, deed: Deed, outcome: str) -> None:
    try:
        if admin.note is not None:
            await admin.note(deed, outcome)
    except StoreError as failure:
        facts = {"action": deed.action, "target": deed.target, "outcome": outcome, "failure": repr(failure)}
        log.warning("administrative act not recorded", extra=facts)


def _has_token(admin: Admin, request: web.BaseRequest) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # Bytes, since compare_digest raises on text beyond ASCII.
    same = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), admin.token.encode())
    return same and scheme.lower() == "bearer"


async def _body(
    request: web.BaseRequest, *, required: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    if request.content_length is not None and request.content_length > BODY_SIZE_MAX:
        raise Problem(413, "the request's body is too large")
    content = await request.content.read(BODY_SIZE_MAX + 1)
    while len(content) <= BODY_SIZE_MAX and (more := await request.content.read(BODY_SIZE_MAX + 1)):
        content += more
    if len(content) > BODY_SIZE_MAX:
        raise Problem(413, "the request's body is too large")
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        raise Problem(400, "the request's body is not JSON") from None
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise Problem(400, "the request's body must be a JSON object of strings")
    if not all(value.isprintable() for value in given.values()):  # Half surrogates, among others.
        raise Problem(400, "the request's body has characters that cannot be printed")
    for name in required:
        if not given.get(name):
            raise Problem(400, f"{name} is missing")
    for name in given:
        if name not in required and name not in optional:
            raise Problem(400, f"unknown field {name}")
    return given


def _json(content: Json, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps(content, default=str).encode(),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
    )
