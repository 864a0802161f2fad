"""`objstore tenant`, `project`, `user`, `token` and `key`: who may use the store, and who pays for it."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from objstore.cli.client import Unsure
from objstore.cli.output import DEGRADED, fail
from objstore.cli.progress import Steps
from objstore.cli.renting import size
from objstore.cli.store import Store, YesOption, asks, changes, quoted
from objstore.config import ConfigError

tenant_app = typer.Typer(help="Tenants: who owns buckets, and who pays.", no_args_is_help=True)
seller_app = typer.Typer(help="Sellers: the legal entities on invoices.", no_args_is_help=True)
project_app = typer.Typer(help="Projects of tenants.", no_args_is_help=True)
user_app = typer.Typer(help="Users of tenants.", no_args_is_help=True)
key_app = typer.Typer(help="Access keys of users.", no_args_is_help=True)

LOOK_S: Final = 2.0  # Between two looks at what is waited for.

TenantName = Annotated[str, typer.Argument(help="The tenant's name.")]
ProjectName = Annotated[str, typer.Argument(help="The project's name.")]
UserName = Annotated[str, typer.Argument(help="The user's name.")]
KeyId = Annotated[str, typer.Argument(help="The access key id.")]
Undo = Annotated[bool, typer.Option("--undo", help="Enable again.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="FIELD=VALUE; once for each. Lists: A,B; tables: NAME:TEXT,NAME:TEXT."),
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="NAME=TEXT; once for each.")]

_LISTS: Final = frozenset({"documents"})
_LINES: Final = frozenset({"address"})  # May hold commas: the parts are set off by semicolons.
_TABLES: Final = frozenset({"tax_ids"})
_NUMBERS: Final = frozenset(
    {
        "plan_version", "next_plan_version", "payment_terms_days", "collection_hours", "past_due_days",
        "read_only_days", "suspended_days", "reversibility_days",
    }
)  # fmt: skip
_SWITCHES: Final = frozenset({"purchase_order_required", "reseller"})


def fields(given: list[str] | None) -> dict[str, Any]:
    """FIELD=VALUE as the API takes it. Raises: ConfigError."""
    found: dict[str, Any] = {}
    for one in given or ():
        name, is_given, text = one.partition("=")
        name = name.replace("-", "_")
        if not is_given:
            raise ConfigError(f"--set {one}: it is FIELD=VALUE")
        if name in _NUMBERS:
            if not text.isdecimal():
                raise ConfigError(f"--set {one}: {name} is a number")
            found[name] = int(text)
        elif name in _SWITCHES:
            if text not in ("yes", "no"):
                raise ConfigError(f"--set {one}: {name} is yes or no")
            found[name] = text == "yes"
        elif name in _TABLES:
            found[name] = pairs(text.split(",") if text else [], ":")
        elif name in _LISTS | _LINES:
            found[name] = [
                part.strip() for part in text.split(";" if name in _LINES else ",") if part.strip()
            ]
        else:
            found[name] = text
    return found


def pairs(given: list[str] | None, sign: str = "=") -> dict[str, str]:
    """NAME=TEXT. Raises: ConfigError."""
    found = {}
    for one in given or ():
        name, is_given, text = one.partition(sign)
        if not is_given or not name:
            raise ConfigError(f"{one}: it is NAME{sign}TEXT")
        found[name.strip()] = text.strip()
    return found


def _switch(store: Store, kind: str, name: str, *, disable: bool) -> None:
    verb = "disable" if disable else "enable"
    facts = store.change("POST", f"/api/v1/{kind}/{quoted(name)}/{verb}")
    store.tell(f"{name}: {verb}d", facts)


# --- tenants --------------------------------------------------------------------------------------


@tenant_app.command("list")
@asks
def tenant_list(store: Store) -> None:
    """Every tenant; with a user's token its own, and its customers."""
    store.show(store.listed("/api/v1/tenants"), "name", "disabled", "created")


@tenant_app.command("create")
@changes
def tenant_create(
    store: Store,
    name: TenantName,
    kind: Annotated[
        str,
        typer.Option(
            help="auto_entrepreneur, tpe_pme, grande_entreprise, administration, wholesale or internal:"
            " a customer with the preset of its kind. Without it: a tenant that is no customer."
        ),
    ] = "",
    given: Set = None,
    trial_days: Annotated[
        int | None, typer.Option(help="0: active at once.  [as the kind's preset says]", show_default=False)
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="Where its bytes may lie; once for each.  [anywhere]")
    ] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="The tenant is there, and becomes a customer.")
    ] = False,
    bytes_: Annotated[
        str | None, typer.Option("--bytes", help="Its hard quota: 10TB.  [no limit]", show_default=False)
    ] = None,
    objects: Annotated[
        int | None, typer.Option(help="As many at most.  [no limit]", show_default=False)
    ] = None,
) -> None:
    """Create a tenant; with --kind as a customer, on trial or active.

    Fields of --set are those of the API: legal_name, address, country, tax_ids, seller, parent, plan, ...
    Whose reseller has a quota needs one too, from the beginning."""
    limits = {"bytes_max": None if bytes_ is None else size(bytes_), "objects_max": objects}
    body: dict[str, Any] = {"name": name, "kind": kind, "trial_days": trial_days, "sites": site or []}
    body |= {"adopt": adopt, "limits": limits}
    made = store.change("POST", "/api/v1/tenants", {**body, **fields(given)})
    store.show_facts(made)
    if made["without_plan"]:
        print(f"{name} has no plan yet, and is not invoiced: {made['without_plan']}", file=sys.stderr)


@tenant_app.command("show")
@asks
def tenant_show(store: Store, name: TenantName) -> None:
    """A tenant with its limits, use and users, and as a customer."""
    found = store.get(f"/api/v1/tenants/{quoted(name)}")
    users = store.listed("/api/v1/users", tenant=name)
    store.show_with(found, "users", users, "name", "role", "disabled", "email")


@tenant_app.command("set")
@changes
def tenant_set(store: Store, name: TenantName, given: Set = None) -> None:
    """Change what invoices and payments of a customer go by, from the next document on."""
    store.show_facts(store.change("PATCH", f"/api/v1/tenants/{quoted(name)}", fields(given)))


@tenant_app.command("state")
@changes
def tenant_state(
    store: Store,
    name: TenantName,
    state: Annotated[
        str,
        typer.Argument(help="trial, active, past_due, read_only, suspended, terminating or purged."),
    ],
    reason: Annotated[str, typer.Option(help="In your words: it stays with the account.")] = "",
    yes: YesOption = False,
) -> None:
    """Take an account into another state."""
    if state in ("terminating", "purged"):
        store.confirm(name, f"{name} will be {state}: it cannot store any more.", yes=yes)
    path = f"/api/v1/tenants/{quoted(name)}/state"
    facts = store.change("PUT", path, {"state": state, "reason": reason})
    store.tell(f"{name}: {facts['state']}" if facts else "", facts)


@tenant_app.command("sites")
@changes
def tenant_sites(
    store: Store,
    name: TenantName,
    site: Annotated[list[str] | None, typer.Option(help="Once for each.")] = None,
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="Wherever its reseller's bytes may lie.")
    ] = False,
) -> None:
    """Say at which sites a tenant's bytes may lie. Refused while a bucket of it lies elsewhere."""
    if bool(site) == anywhere:
        raise ConfigError("name its sites with --site, or say --anywhere")
    facts = store.change("PUT", f"/api/v1/tenants/{quoted(name)}/sites", {"sites": site or []})
    store.tell(f"{name}: {', '.join(facts['sites']) or 'anywhere'}", facts)


@tenant_app.command("disable")
@changes
def tenant_disable(store: Store, name: TenantName, undo: Undo = False) -> None:
    """Refuse every request signed with a key of any of the tenant's users. Its data stay."""
    _switch(store, "tenants", name, disable=not undo)


@tenant_app.command("enable")
@changes
def tenant_enable(store: Store, name: TenantName) -> None:
    """Serve the tenant again. Users and keys that were disabled on their own stay so."""
    _switch(store, "tenants", name, disable=False)


# --- sellers --------------------------------------------------------------------------------------


@seller_app.command("list")
@asks
def seller_list(store: Store) -> None:
    """Every legal entity that sells."""
    store.show(store.listed("/api/v1/sellers"), "id", "name", "country", "invoice_prefix", "credit_prefix")


@seller_app.command("create")
@changes
def seller_create(
    store: Store,
    name: Annotated[str, typer.Argument(help="A short name, as oran.")],
    given: Set = None,
) -> None:
    """Add a legal entity: --set name=..., --set address="1, rue; Oran", --set country=DZ, ..."""
    store.show_facts(store.change("POST", "/api/v1/sellers", {"id": name, **fields(given)}))


@seller_app.command("show")
@asks
def seller_show(store: Store, name: str) -> None:
    """A legal entity."""
    store.show_facts(store.get(f"/api/v1/sellers/{quoted(name)}"))


@seller_app.command("set")
@changes
def seller_set(store: Store, name: str, given: Set = None) -> None:
    """Change a legal entity, from the next document on."""
    store.show_facts(store.change("PATCH", f"/api/v1/sellers/{quoted(name)}", fields(given)))


# --- projects -------------------------------------------------------------------------------------


def _projects(tenant: str, project: str = "") -> str:
    path = f"/api/v1/tenants/{quoted(tenant)}/projects"
    return f"{path}/{quoted(project)}" if project else path


@project_app.command("list")
@asks
def project_list(store: Store, tenant: TenantName) -> None:
    """A tenant's projects."""
    store.show(store.listed(_projects(tenant)), "name", "cost_centre", "created")


@project_app.command("create")
@changes
def project_create(
    store: Store, tenant: TenantName, name: ProjectName, cost_centre: str = "", tag: Tags = None
) -> None:
    """Make a project."""
    body = {"name": name, "cost_centre": cost_centre, "tags": pairs(tag)}
    store.show_facts(store.change("POST", _projects(tenant), body))


@project_app.command("show")
@asks
def project_show(store: Store, tenant: TenantName, name: ProjectName) -> None:
    """A project with its limits."""
    store.show_facts(store.get(_projects(tenant, name)))


@project_app.command("set")
@changes
def project_set(
    store: Store,
    tenant: TenantName,
    name: ProjectName,
    cost_centre: Annotated[str | None, typer.Option(show_default=False)] = None,
    tag: Tags = None,
) -> None:
    """Change its cost centre or tags (all of them); what is not given stays."""
    body = {"cost_centre": cost_centre, "tags": None if tag is None else pairs(tag)}
    store.show_facts(store.change("PATCH", _projects(tenant, name), body))


# --- users ----------------------------------------------------------------------------------------


@user_app.command("create")
@changes
def user_create(
    store: Store,
    name: UserName,
    tenant: Annotated[
        str | None, typer.Option(help="The tenant; made if it is new.  [the user's name]", show_default=False)
    ] = None,
    email: Annotated[str, typer.Option(show_default=False)] = "",
    role: Annotated[str, typer.Option(help="owner, admin, billing or reader.")] = "owner",
) -> None:
    """Create a user. A bucket belongs to its creator's tenant and is closed to all others."""
    body = {"name": name, "tenant": tenant or name, "email": email, "role": role}
    store.show([store.change("POST", "/api/v1/users", body)], "name", "tenant")


@user_app.command("list")
@asks
def user_list(
    store: Store,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.", show_default=False)] = None,
) -> None:
    """Every user."""
    found = store.listed("/api/v1/users", tenant=tenant)
    store.show(found, "name", "tenant", "root", "disabled", "created", "email", "role")


@user_app.command("role")
@changes
def user_role(
    store: Store,
    name: UserName,
    role: Annotated[str, typer.Argument(help="owner, admin, billing or reader.")],
) -> None:
    """Give a user another role, from the next request on."""
    facts = store.change("PUT", f"/api/v1/users/{quoted(name)}/role", {"role": role})
    store.tell(f"{name}: {role}", facts)


@user_app.command("disable")
@changes
def user_disable(store: Store, name: UserName, undo: Undo = False) -> None:
    """Refuse every request signed with the user's keys, or that bears its tokens."""
    _switch(store, "users", name, disable=not undo)


@user_app.command("enable")
@changes
def user_enable(store: Store, name: UserName) -> None:
    """Accept the user's keys and tokens again."""
    _switch(store, "users", name, disable=False)


@user_app.command("token")
@changes
def user_token(
    store: Store,
    name: UserName,
    days: Annotated[int, typer.Option(help="For how long it is good, at most 366.")] = 90,
    comment: Annotated[str, typer.Option(show_default=False)] = "",
) -> None:
    """Make a token for the admin API: it may what its user may. It is shown now and never again."""
    path = f"/api/v1/users/{quoted(name)}/tokens"
    made = store.change("POST", path, {"days": days, "comment": comment})
    _check_shown(made["token"], f"objstore user revoke {made['id']}")
    store.show([made], "token", "user", "expires")


def _check_shown(secret: str, undo: str) -> None:
    """A secret is in the first answer only. Raises: Unsure, if that was lost."""
    if not secret:
        raise Unsure(f"it was made, but the answer with its secret was lost: {undo}, and make another")


@user_app.command("tokens")
@asks
def user_tokens(store: Store, name: UserName) -> None:
    """A user's tokens by their ids."""
    found = store.listed(f"/api/v1/users/{quoted(name)}/tokens")
    store.show(found, "id", "created", "expires", "expired", "last_used", "comment")


@user_app.command("revoke")
@changes
def user_revoke(store: Store, token: Annotated[str, typer.Argument(help="The token's id.")]) -> None:
    """Make a token no longer good."""
    facts = store.change("DELETE", f"/api/v1/tokens/{quoted(token.partition('.')[0])}")
    store.tell(facts["done"], facts)


# --- access keys ----------------------------------------------------------------------------------


@key_app.command("create")
@changes
def key_create(
    store: Store,
    user: UserName,
    comment: Annotated[str, typer.Option(show_default=False)] = "",
    print_: Annotated[
        str | None,
        typer.Option("--print", help="Also print settings for: aws,rclone,boto3.", show_default=False),
    ] = None,
    project: Annotated[str, typer.Option(help="The only one it sees.", show_default=False)] = "",
    policy: Annotated[
        Path | None, typer.Option(help="A file in AWS's policy language.", show_default=False)
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="A moment, as 2027-01-31T00:00:00Z.", show_default=False)
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="From where it may be used, as 192.0.2.0/24; once for each.")
    ] = None,
) -> None:
    """Create an access key. Its secret is shown now and never again."""
    from objstore.admin.snippets import SNIPPETS

    wanted = [tool for tool in (print_ or "").split(",") if tool]
    if unknown := [tool for tool in wanted if tool not in SNIPPETS]:
        raise ConfigError(f"--print {unknown[0]}: one of {', '.join(SNIPPETS)}")
    terms = _terms(project, policy, expires, network)
    key = store.change("POST", "/api/v1/keys", {"user": user, "comment": comment, **terms})
    _check_shown(key["secret_key"], f"objstore key remove {key['access_key']}")
    store.show([key], "access_key", "secret_key", "user")
    for tool in wanted:
        print()
        print(SNIPPETS[tool](key["endpoint"], key["region"], key["access_key"], key["secret_key"]))


def _terms(
    project: str, policy: Path | None, expires: str | None, networks: list[str] | None
) -> dict[str, Any]:
    try:
        text = "" if policy is None else policy.read_text()
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"--policy {policy}: {failure}") from None
    return {"project": project, "policy": text, "expires": expires, "networks": networks or []}


@key_app.command("list")
@asks
def key_list(
    store: Store,
    user: Annotated[str | None, typer.Option(help="Only this user's.", show_default=False)] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.", show_default=False)] = None,
) -> None:
    """Every access key; secrets are never shown."""
    found = store.listed("/api/v1/keys", user=user, tenant=tenant)
    store.show(found, "access_key", "user", "disabled", "created", "comment", "expires", "last_used")


@key_app.command("show")
@asks
def key_show(store: Store, access_key: KeyId) -> None:
    """An access key and its terms."""
    store.show_facts(store.get(f"/api/v1/keys/{quoted(access_key)}"))


@key_app.command("terms")
@changes
def key_terms(
    store: Store,
    access_key: KeyId,
    project: Annotated[str, typer.Option(show_default=False)] = "",
    policy: Annotated[Path | None, typer.Option(show_default=False)] = None,
    expires: Annotated[str | None, typer.Option(show_default=False)] = None,
    network: Annotated[list[str] | None, typer.Option()] = None,
) -> None:
    """Put a key on other terms, all of them: what is not given no longer bounds it. Its limits stay."""
    path = f"/api/v1/keys/{quoted(access_key)}"
    limits = store.get(path)["limits"]
    terms = _terms(project, policy, expires, network)
    store.show_facts(store.change("PUT", f"{path}/terms", {**terms, "limits": limits}))


@key_app.command("remove")
@changes
def key_remove(store: Store, access_key: KeyId, yes: YesOption = False) -> None:
    """Remove a key for good, and its secret."""
    store.confirm(access_key, f"The secret of {access_key} cannot be brought back.", yes=yes)
    facts = store.change("DELETE", f"/api/v1/keys/{quoted(access_key)}")
    store.tell(facts["done"], facts)


@key_app.command("disable")
@changes
def key_disable(store: Store, access_key: KeyId, undo: Undo = False) -> None:
    """Refuse every request signed with the key."""
    _switch(store, "keys", access_key, disable=not undo)


@key_app.command("enable")
@changes
def key_enable(store: Store, access_key: KeyId) -> None:
    """Accept the key again."""
    _switch(store, "keys", access_key, disable=False)


@key_app.command("rotate-master")
@changes
def key_rotate_master(
    store: Store,
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for it to be done, showing progress.", min=0)
    ] = 0.0,
) -> None:
    """Seal anew, in the background, what older master keys sealed: secrets of access keys and of replication,
    the cluster's authority. Cut short, it goes on where it was."""
    status = store.change("POST", "/api/v1/master-key/rotate")
    ends = time.monotonic() + wait
    with Steps("sealing anew", "secrets") as progress:
        while status["state"] == "under way" and time.monotonic() < ends:
            left = sum(one[what] for one in status["needed"] for what in ("keys", "targets", "authorities"))
            progress.reached(status["done"], status["done"] + left)
            time.sleep(min(LOOK_S, max(0.0, ends - time.monotonic())))
            status = store.get("/api/v1/master-key")
    store.show_facts(status)
    if wait and status["state"] == "under way":
        fail(f"not done after {wait:g} s; it goes on: objstore key master", DEGRADED)


@key_app.command("master")
@asks
def key_master(store: Store) -> None:
    """The master key by its id, how far the change to it is, and what still needs an older one."""
    store.show_facts(store.get("/api/v1/master-key"))
