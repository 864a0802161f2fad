"""Configuration: typed, frozen, explained, read once at the start.

Four places, each stronger than the one before: the defaults below, the file
(`config/objstore.toml` is made from this module, a test holds the two equal), the environment
(`OBJSTORE_SECTION__OPTION`; with `_FILE` appended the value is read from that file), the flags of
the command line. An unknown name anywhere is an error that names the nearest valid one. Below this
layer nobody sees a dict, an environment variable or a string that should have been a number.
"""

import difflib
import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

KIB: Final = 1024
MIB: Final = 1024 * KIB

ENVIRONMENT_PREFIX: Final = "OBJSTORE_"
# The two that every container image of a store has; the rest follow OBJSTORE_SECTION__OPTION.
ALIASES: Final = {
    "OBJSTORE_ROOT_ACCESS_KEY": "root.access_key",
    "OBJSTORE_ROOT_SECRET_KEY": "root.secret_key",
}
# What the commands read that are no settings of the store: which one, and its token.
COMMAND_VARIABLES: Final = {
    "OBJSTORE_ADMIN",
    "OBJSTORE_CONFIG",
    "OBJSTORE_JOIN",
    "OBJSTORE_TARGET_SECRET_KEY",
    "OBJSTORE_TOKEN",
}


class ConfigError(Exception):
    """The operator's file, variable or flag is wrong. The message names the option and the rule."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [section]. Options carry their explanation; it is data, the file is generated from it."""


Percent = Annotated[int, Meta(ge=0, le=100)]


class Server(Section, frozen=True, kw_only=True):
    """Where the store listens and how many processes serve."""

    data: Annotated[
        str,
        Meta(description="Directory of the store: disks made by the first start, sockets, the admin token."),
    ] = "data"
    listen: Annotated[str, Meta(description="host:port of the S3 API. An IPv6 host stands in brackets.")] = (
        "127.0.0.1:9000"
    )
    admin_listen: Annotated[
        str, Meta(description="host:port of health, metrics and the admin API. Keep it off public networks.")
    ] = "127.0.0.1:9001"
    workers: Annotated[
        int, Meta(ge=0, le=256, description="Gateway processes that share the S3 port. 0: one per core.")
    ] = 0
    region: Annotated[
        str, Meta(pattern=r"^[a-z0-9-]{1,32}$", description="The region that requests must be signed for.")
    ] = "us-east-1"
    domains: Annotated[
        list[str],
        Meta(
            description='Base domains for virtual-host style: with ["s3.example.org"], a request to'
            " photos.s3.example.org is one to the bucket photos. Path style always works."
        ),
    ] = []
    drain_seconds: Annotated[
        int, Meta(ge=0, le=3600, description="How long a stop waits for requests that are under way.")
    ] = 30


class Disks(Section, frozen=True, kw_only=True):
    """Where the bytes lie. One directory per physical disk, each on its own file system."""

    paths: Annotated[
        list[str],
        Meta(
            description="Directories of the disks, empty ones when first named. Without any, the first start"
            " makes six under server.data: a convenience that survives no disk."
        ),
    ] = []
    progress_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="A write or sync that takes longer makes its disk suspect: it gets no"
            " new writes until it has been verified.",
        ),
    ] = 10.0
    reserve_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="A disk with less free space is full: no new objects on it, but reads, deletes and"
            " the metadata journal go on. 0: 2% of the file system, at most 1 GiB.",
        ),
    ] = 0


class Blobs(Section, frozen=True, kw_only=True):
    """How objects become erasure-coded stripes."""

    codec: Annotated[
        str,
        Meta(
            pattern=r"^[0-9]{1,2}\+[0-9]{1,2}$",
            description="data+parity fragments per stripe. 4+2 stores 1.5"
            " bytes per byte and survives any two disks. Existing volumes keep theirs.",
        ),
    ] = "4+2"
    accelerator: Annotated[
        str,
        Meta(
            pattern="^(auto|isal|zfec)$",
            description="auto: ISA-L if it is there, else zfec; both make the same"
            " bytes. isal: refuse to start without it.",
        ),
    ] = "auto"
    carried_size_max: Annotated[
        int,
        Meta(
            ge=0,
            le=8_192,
            description="Bytes. A body up to this size that comes alone is acknowledged when the journal"
            " holds it, with its record, on m+1 disks; within seconds it is packed into a stripe with its"
            " like. 0: never. Without effect on PostgreSQL.",
        ),
    ] = 8_192
    small_size_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1 * MIB,
            description="Bytes. Bodies up to this size share stripes and syncs with others;"
            " larger ones stream in stripes of their own.",
        ),
    ] = 128 * KIB
    write_memory_bytes: Annotated[
        int,
        Meta(
            ge=16 * MIB,
            description="Bytes of stripes that a worker's uploads hold together. It bounds memory, not the"
            " number of uploads: they share it.",
        ),
    ] = 96 * MIB
    read_memory_bytes: Annotated[
        int, Meta(ge=16 * MIB, description="Bytes that a worker's downloads hold together.")
    ] = 64 * MIB
    volume_size_max: Annotated[
        int, Meta(ge=1 * MIB, le=1 << 40, description="Bytes of one fragment file before a volume is sealed.")
    ] = 256 * MIB


class MetaSection(Section, frozen=True, kw_only=True):
    """The metadata engine: LMDB as the state, a journal on several disks as the truth; or PostgreSQL."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^(postgres(ql)?://[!-~]+)?$",
            description="postgresql://user@host:5432,host:5432/database for many gateways: of several hosts"
            " the one that takes writes is used. The options after ? and the environment are libpq's"
            " (sslmode=verify-full, PGPASSFILE). Empty: LMDB. Better given by OBJSTORE_META__URL_FILE, as it"
            " may hold a password.",
        ),
    ] = ""
    sync_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="How often LMDB is synced; recovery never depends on it.")
    ] = 30.0
    copy_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=60,
            description="A journal copy whose write and sync take longer is left out: a new epoch"
            " opens on the other disks.",
        ),
    ] = 2.0
    sites: Annotated[
        list[str],
        Meta(
            description="Sites of the storage nodes whose disks may hold metadata: copies of the journal,"
            " and of all metadata in volumes. Keys, names and access keys never leave them. Empty: all."
        ),
    ] = []

    def __repr__(self) -> str:  # A secret never reaches a log or a traceback.
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "url"}
        return f"MetaSection({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Limits(Section, frozen=True, kw_only=True):
    """Bounds at the edge. Beyond them the answer is 503 SlowDown, early and cheap."""

    connections: Annotated[int, Meta(ge=1, description="Open connections per worker.")] = 4096
    requests: Annotated[int, Meta(ge=1, description="Requests in flight per worker, of one tenant.")] = 1024
    body_bytes: Annotated[
        int, Meta(ge=1 * MIB, description="Bytes of request bodies in flight per worker, of one tenant.")
    ] = 256 * MIB
    header_seconds: Annotated[
        float, Meta(gt=0, description="Longest time from a connection's first byte to the end of the head.")
    ] = 10.0
    idle_seconds: Annotated[
        float, Meta(gt=0, description="A connection without a request is closed after this.")
    ] = 60.0
    body_seconds: Annotated[
        float, Meta(gt=0, description="Longest pause within a request's body or an answer's.")
    ] = 30.0
    body_rate: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes a second that a body must average after its first ten seconds, and a reader.",
        ),
    ] = 1024


class Tls(Section, frozen=True, kw_only=True):
    """Certificates. Renewed files are taken up within seconds, without a restart."""

    certificate: Annotated[
        str, Meta(description="PEM file with the chain for the S3 port. Empty: plain HTTP.")
    ] = ""
    key: Annotated[str, Meta(description="PEM file with its private key.")] = ""
    admin_certificate: Annotated[
        str, Meta(description="The same for the admin port. Empty: as for the S3 port.")
    ] = ""
    admin_key: Annotated[str, Meta(description="PEM file with its private key.")] = ""
    admin: Annotated[bool, Meta(description="TLS on the admin port, where a certificate is given.")] = True


class Cluster(Section, frozen=True, kw_only=True):
    """A gateway's side of a cluster: where storage nodes and other gateways join it. What speaks here is
    mutually authenticated TLS with the cluster's own certificates; nothing switches that off."""

    listen: Annotated[
        str,
        Meta(
            description="host:port of the cluster's own port. Empty: this store is one machine. Needs what"
            " `objstore cluster init` makes."
        ),
    ] = ""
    address: Annotated[
        str,
        Meta(
            description="host:port under which other machines reach that port; it stands in join tokens."
            " Empty: as listen says, or this machine's name where that is every address."
        ),
    ] = ""
    name: Annotated[str, Meta(description="This gateway's name, for people. Empty: the machine's name.")] = ""
    site: Annotated[str, Meta(description="The site it stands in.")] = ""
    rack: Annotated[str, Meta(description="The rack it stands in.")] = ""
    away_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="A machine that has not answered for so long is away: its disks take no new volumes"
            " until it answers. It is asked three times within it. Repair waits for"
            " upkeep.repair_grace_seconds.",
        ),
    ] = 15.0


class Node(Section, frozen=True, kw_only=True):
    """A storage node (`objstore node`): it serves disks.paths, and keeps its own files in server.data."""

    listen: Annotated[
        str, Meta(description="host:port for gateways; mutually authenticated TLS, like cluster.listen.")
    ] = "127.0.0.1:9003"
    address: Annotated[
        str,
        Meta(
            description="host:port under which gateways reach it. Empty: as listen says, or this machine's"
            " name where that is every address."
        ),
    ] = ""
    name: Annotated[
        str,
        Meta(
            description="The node's name, for people; no two nodes of a cluster share one. Empty: the"
            " machine's name."
        ),
    ] = ""
    site: Annotated[
        str,
        Meta(description="The site it stands in: the largest failure domain, and what residency is about."),
    ] = ""
    rack: Annotated[str, Meta(description="The rack within the site: the failure domain above the node.")] = (
        ""
    )


class MetricsSection(Section, frozen=True, kw_only=True):
    """What Prometheus sees."""

    public: Annotated[bool, Meta(description="Serve /metrics without the admin token.")] = False
    tenant_limit: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Tenants that are named, of those that store, ask and lease most each: about a dozen"
            " series for each of them. All others are one, `other`.",
        ),
    ] = 50


class Log(Section, frozen=True, kw_only=True):
    """Logs are JSON lines on standard error; the access log may go elsewhere."""

    level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$", description="Least level shown.")] = (
        "info"
    )
    access: Annotated[
        str,
        Meta(
            pattern="^(files|stdout|stderr|off)$",
            description="Where each request leaves a JSON line. files: log/access-N.log under server.data, "
            "one per worker, the last one kept when it is full.",
        ),
    ] = "files"
    access_size_max: Annotated[
        int, Meta(ge=64 * KIB, description="Bytes of such a file before it is set aside as access-N.log.1.")
    ] = 64 * MIB


class Upkeep(Section, frozen=True, kw_only=True):
    """What runs in the background."""

    enabled: Annotated[bool, Meta(description="Run scrub, compaction and the trash.")] = True
    scrub_days: Annotated[
        float, Meta(gt=0, description="Every stored byte is read and verified within this time.")
    ] = 14.0
    trash_days: Annotated[
        float,
        Meta(
            ge=0,
            description="Removed volumes stay readable this long before they are purged; but only"
            " a day where space is short.",
        ),
    ] = 7.0
    repair_grace_seconds: Annotated[
        float,
        Meta(
            ge=0,
            description="A disk that is gone this long is rebuilt on the others. Shorter than a repair,"
            " longer than a cable.",
        ),
    ] = 900.0
    snapshot_hours: Annotated[
        float,
        Meta(
            gt=0,
            description="How often a copy of all metadata is stored in volumes, for `objstore meta rebuild`"
            " after the loss of the journal. The first one a minute after the first start; one more a minute"
            " after tenants, users, keys or buckets changed, at most every ten minutes.",
        ),
    ] = 24.0
    garbage_percent: Annotated[
        int, Meta(ge=1, le=100, description="A sealed volume with more garbage than this is compacted.")
    ] = 30
    bytes_per_second: Annotated[
        int, Meta(ge=1 * KIB, description="Pace of scrub and compaction together.")
    ] = 64 * MIB
    rebalance: Annotated[
        bool,
        Meta(
            description="Move fragment files to where the layout wants them, and from full disks to empty"
            " ones. Off: nothing moves by itself but off disks that are to be emptied."
        ),
    ] = True
    rebalance_bytes_per_second: Annotated[
        int,
        Meta(
            ge=1 * KIB,
            description="Pace of rebalancing, within bytes_per_second. It pauses while files are to be"
            " rebuilt. A moved file counts twice: it is read and read back.",
        ),
    ] = 32 * MIB
    rebalance_percent: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Files move between disks when one is fuller or emptier than the mean by more than"
            " this share of the mean; by less than one percent of a disk's size never.",
        ),
    ] = 5
    period_factor: Annotated[
        float,
        Meta(
            ge=0.001,
            le=10,
            description="Factor on the time between two rounds of repair, compaction, trash and sweep."
            " Below 1 for a store that is being emptied, and for tests that want all of it at once.",
        ),
    ] = 1.0


class Replication(Section, frozen=True, kw_only=True):
    """How changes of replicated buckets are sent to other stores (`objstore replication`)."""

    bytes_per_second: Annotated[int, Meta(ge=1 * KIB, description="Pace, of all buckets together.")] = (
        64 * MIB
    )
    keys_at_once: Annotated[
        int, Meta(ge=1, le=1024, description="Keys that are under way, of all buckets together.")
    ] = 16
    ca_file: Annotated[
        str,
        Meta(
            description="Certificates (PEM) that targets' certificates must come from. Empty: the machine's."
        ),
    ] = ""


class Metering(Section, frozen=True, kw_only=True):
    """What is counted for bills. Bytes of answers are counted by where they go: to the address that the
    connection comes from (behind a proxy that is the proxy's)."""

    internal_networks: Annotated[
        list[str],
        Meta(description='Networks whose transfer counts as internal, such as ["10.0.0.0/8", "fd00::/8"].'),
    ] = []
    replication_networks: Annotated[
        list[str],
        Meta(description="Networks of other stores: transfer to them counts as replication."),
    ] = []


class Root(Section, frozen=True, kw_only=True):
    """The first user's key. Without one the first start makes and prints it. Better given by
    OBJSTORE_ROOT_ACCESS_KEY and OBJSTORE_ROOT_SECRET_KEY, or their _FILE forms, than in a file. Each start
    takes what is given; a key that was disabled since stays so, until it is enabled or has another secret."""

    access_key: Annotated[
        str,
        Meta(pattern=r"^([A-Za-z0-9]{3,128})?$", description="3 to 128 letters and digits."),
    ] = ""
    secret_key: Annotated[
        str,
        Meta(pattern=r"^([!-~]{8,128})?$", description="8 to 128 printable characters without spaces."),
    ] = ""

    def __repr__(self) -> str:  # A secret never reaches a log or a traceback.
        return f"Root(access_key={self.access_key!r})"


class Security(Section, frozen=True, kw_only=True):
    """Secrets of the store itself."""

    master_key: Annotated[
        str,
        Meta(
            pattern=r"^([0-9a-fA-F]{64})?$",
            description="64 hexadecimal digits under which the users' secret keys are encrypted. Empty: the"
            " first start makes one and keeps it on the disks. Given, it is never written anywhere, and"
            " every start needs it: OBJSTORE_SECURITY__MASTER_KEY_FILE.",
        ),
    ] = ""
    other_master_keys: Annotated[
        list[Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$")]],
        Meta(
            description="Other keys that open what they sealed: earlier ones, until objstore doctor says that"
            " nothing needs them any more, and on several gateways the coming one, before it becomes"
            " master_key on any of them."
        ),
    ] = []

    def __repr__(self) -> str:  # A secret never reaches a log or a traceback.
        return "Security(...)"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator can set. Passed to constructors, never changed."""

    server: Server = Server()
    disks: Disks = Disks()
    blobs: Blobs = Blobs()
    meta: MetaSection = MetaSection()
    limits: Limits = Limits()
    tls: Tls = Tls()
    cluster: Cluster = Cluster()
    node: Node = Node()
    metrics: MetricsSection = MetricsSection()
    log: Log = Log()
    upkeep: Upkeep = Upkeep()
    replication: Replication = Replication()
    metering: Metering = Metering()
    root: Root = Root()
    security: Security = Security()

    def __post_init__(self) -> None:
        k, m = self.codec
        require(k >= 1 and m >= 1 and k + m <= 32, f"blobs.codec: 1+1 to 32 fragments in all, not {k}+{m}")
        for name, value in (("listen", self.server.listen), ("admin_listen", self.server.admin_listen)):
            host_and_port(value, f"server.{name}")
        require(
            not _same_port(self.server.listen, self.server.admin_listen),
            f"server.listen (--listen, {self.server.listen}) and server.admin_listen (--admin-listen,"
            f" {self.server.admin_listen}) are one port: give each its own",
        )
        for name, value in (
            ("cluster.listen", self.cluster.listen),
            ("cluster.address", self.cluster.address),
            ("node.address", self.node.address),
        ):
            if value:
                host_and_port(value, name)
        host_and_port(self.node.listen, "node.listen")
        for name in ("internal_networks", "replication_networks"):
            for network in getattr(self.metering, name):
                check_network(network, f"metering.{name}")
        require(self.server.data != "", "server.data must name a directory")
        require(
            len(set(self.disks.paths)) == len(self.disks.paths), "disks.paths names the same directory twice"
        )
        require(
            bool(self.tls.certificate) == bool(self.tls.key), "tls.certificate and tls.key belong together"
        )
        require(
            bool(self.tls.admin_certificate) == bool(self.tls.admin_key),
            "tls.admin_certificate and tls.admin_key belong together",
        )
        require(
            bool(self.root.access_key) == bool(self.root.secret_key),
            "root.access_key and root.secret_key belong together",
        )

    @property
    def codec(self) -> tuple[int, int]:
        """(k, m)."""
        return parse_codec(self.blobs.codec)


def check_network(text: str, name: str) -> None:
    """Raises: ConfigError unless it is a network in CIDR notation."""
    try:
        ip_network(text)
    except ValueError as failure:
        raise ConfigError(f"{name}: {failure}") from failure


def parse_codec(text: str) -> tuple[int, int]:
    """(k, m) of text such as 4+2."""
    k, _, m = text.partition("+")
    return int(k), int(m)


PATTERNS: Final = {  # What an option's pattern means, for who got it wrong.
    "server.region": "1 to 32 small letters, digits and hyphens",
    "blobs.codec": "numbers of data and parity fragments, as 4+2",
    "blobs.accelerator": "auto, isal or zfec",
    "meta.url": "postgresql://USER@HOST/DATABASE",
    "log.level": "debug, info, warning or error",
    "log.access": "files, stdout, stderr or off",
    "root.access_key": "3 to 128 letters and digits",
    "root.secret_key": "8 to 128 printable characters without spaces",
    "security.master_key": "64 hexadecimal digits",
    "security.other_master_keys": "64 hexadecimal digits each",
}
SECRET: Final = {"meta.url", "root.secret_key", "security.master_key", "security.other_master_keys"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option as the manual shows it."""

    name: str  # section.option
    kind: Any
    default: object
    doc: str


def options() -> dict[str, Option]:
    """Every option, in the order of the file."""
    found: dict[str, Option] = {}
    for section, kind in _sections().items():
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            meta = get_args(hints[field.encode_name])[1]
            default = field.default
            if default is msgspec.NODEFAULT:
                default = field.default_factory()
            name = f"{section}.{field.name}"
            found[name] = Option(name, get_args(hints[field.name])[0], default, meta.description)
    return found


def _sections() -> dict[str, type[Section]]:
    return {field.name: field.type for field in msgspec.structs.fields(Config)}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked configuration and where each option came from."""

    config: Config
    origins: dict[str, str]  # section.option -> default | file PATH | environment NAME | flag --NAME

    def shown(self, name: str) -> object:
        section, _, option = name.partition(".")
        value = getattr(getattr(self.config, section), option)
        return "(hidden)" if name in SECRET and value else value


def load(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, tuple[str, object]] | None = None
) -> Loaded:
    """Read, merge and check.

    Args:
        file: a TOML file, or None.
        flags: section.option -> (the flag as typed, its value).

    Raises: ConfigError; the message names the place, the option and the rule.
    """
    known = options()
    values: dict[str, dict[str, object]] = {section: {} for section in _sections()}
    origins = dict.fromkeys(known, "default")

    def put(name: str, value: object, origin: str) -> None:
        section, _, option = name.partition(".")
        values[section][option] = value
        origins[name] = origin

    for name, value in _from_file(file, known).items():
        put(name, value, f"file {file}")
    for name, (value, origin) in _from_environment(environment, known).items():
        put(name, value, origin)
    for name, (flag, value) in (flags or {}).items():
        put(name, value, f"flag {flag}")

    made: dict[str, Section] = {}
    for section, kind in _sections().items():
        try:
            made[section] = msgspec.convert(values[section], kind)
        except msgspec.ValidationError as failure:
            raise _explained(section, failure, values[section], origins) from None
    return Loaded(Config(**made), origins)  # type: ignore[arg-type]


def _from_file(file: Path | None, known: dict[str, Option]) -> dict[str, object]:
    if file is None:
        return {}
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as failure:
        raise ConfigError(f"{file}: {failure.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise ConfigError(f"{file}: not TOML: {failure}") from None
    found: dict[str, object] = {}
    sections = _sections()
    for section, content in document.items():
        if section not in sections:
            hint = _nearest(section, list(sections))
            if not isinstance(content, dict):  # An option outside any section.
                hint = _nearest(section, list(known), by_option=True)
            raise ConfigError(f"{file}: unknown section [{section}]{hint}")
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: {section} is a section: write [{section}]")
        for option, value in content.items():
            name = f"{section}.{option}"
            if name not in known:
                raise ConfigError(f"{file}: unknown option {name}{_nearest(name, list(known))}")
            found[name] = value
    return found


def _from_environment(
    environment: Mapping[str, str], known: dict[str, Option]
) -> dict[str, tuple[object, str]]:
    variables = {ENVIRONMENT_PREFIX + name.upper().replace(".", "__"): name for name in known} | ALIASES
    found: dict[str, tuple[object, str]] = {}
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        plain = variable.removesuffix("_FILE")
        name = variables.get(variable) or variables.get(plain)
        if name is None:
            # OBJSTORE_WITHOUT_SECTION may be another program's; near misses of our own are not.
            near = difflib.get_close_matches(plain, list(variables), 1, 0.85)
            if not near and plain not in COMMAND_VARIABLES:  # OBJSTORE_WORKERS: its section is missing.
                option = "." + plain.removeprefix(ENVIRONMENT_PREFIX).lower()
                near = [place for place, full in variables.items() if full.endswith(option)]
            if "__" in variable or near:
                raise ConfigError(f"unknown variable {variable}{_nearest(plain, near or list(variables))}")
            continue
        text, origin = environment[variable], f"environment {variable}"
        if variable not in variables:
            if plain in environment:
                raise ConfigError(f"both {plain} and {variable} are set: keep one")
            try:
                text = Path(text).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as failure:
                raise ConfigError(f"{variable}: cannot read {text!r}: {failure}") from None
        if name in found and found[name][0] != text:
            raise ConfigError(f"{found[name][1].split()[-1]} and {variable} differ: keep one")
        found[name] = (_from_text(text, known[name].kind, variable), origin)
    return found


_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", re.ASCII)


def _from_text(text: str, kind: Any, place: str) -> object:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ConfigError(f"{place}: true or false, not {text!r}")
        return text.lower() in ("true", "1")
    if kind is int:
        if not _INTEGER.fullmatch(text):
            raise ConfigError(f"{place}: a whole number, not {text!r}")
        return int(text)
    if kind is float:
        if not _NUMBER.fullmatch(text):
            raise ConfigError(f"{place}: a number, not {text!r}")
        return float(text)
    if get_origin(kind) is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _explained(
    section: str, failure: msgspec.ValidationError, given: dict[str, object], origins: dict[str, str]
) -> ConfigError:
    """msgspec says "Expected `int` >= 0 - at `$.workers`"; an operator wants the option's name and place."""
    text = str(failure)
    rule, _, path = text.partition(" - at `$.")
    option = re.split(r"[`\[.]", path)[0]
    name = f"{section}.{option}"
    rule = rule.replace("`", "").replace("Expected ", "must be ")
    if rule.startswith("must be str matching regex "):
        rule = f"must be {PATTERNS[name]}"
    value = "" if name in SECRET or option not in given else f", not {given[option]!r}"
    return ConfigError(f"{origins.get(name, section)}: {name} {rule}{value}")


def _nearest(name: str, candidates: list[str], *, by_option: bool = False) -> str:
    if by_option:
        name = next((full for full in candidates if full.split(".")[1] == name), name)
    near = difflib.get_close_matches(name, candidates, 1, 0.5)
    if not near and "." in name:  # The right option in the wrong section.
        option = name.split(".")[1]
        near = [full for full in candidates if full.split(".")[1] == option][:1]
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(candidates)[:12])} ..."


def require(ok: bool, rule: str) -> None:
    if not ok:
        raise ConfigError(rule)


_LISTEN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})", re.ASCII)


def host_and_port(text: str, name: str = "address") -> tuple[str, int]:
    """Raises: ConfigError if `text` is not host:port."""
    match = _LISTEN.fullmatch(text)
    require(match is not None and int(match[2]) <= 65535, f"{name}: host:port, not {text!r}")
    assert match is not None
    return match[1].strip("[]"), int(match[2])


def _same_port(one: str, other: str) -> bool:
    """Whether one program cannot listen on both. Port 0 is a free one each time."""
    (host, port), (other_host, other_port) = host_and_port(one), host_and_port(other)
    every = "0.0.0.0" in (host, other_host) and ":" not in host + other_host  # noqa: S104
    return 0 != port == other_port and (host == other_host or every)


def defaults_text() -> str:
    """config/objstore.toml: every option, explained, with its default, commented out."""
    lines = [
        "# objstore: every option with its default. Made by `objstore config defaults`.",
        "# A file overrides these, OBJSTORE_SECTION__OPTION overrides the file, a flag overrides both.",
        "# `objstore config check --config FILE` reads a file and says what is wrong with it.",
    ]
    previous = ""
    for option in options().values():
        section, _, name = option.name.partition(".")
        if section != previous:
            doc = " ".join((_sections()[section].__doc__ or "").split())
            lines += [
                "",
                f"[{section}]",
                *textwrap.wrap(doc, 98, initial_indent="# ", subsequent_indent="# "),
            ]
            previous = section
        lines += ["", *textwrap.wrap(option.doc, 98, initial_indent="# ", subsequent_indent="# ")]
        lines += [f"# {name} = {_toml(option.default)}"]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return msgspec.json.encode(value).decode()  # A JSON string is a TOML basic string.
