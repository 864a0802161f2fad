"""`objstore tenant`, `user` and `key`: who may use the store."""

from typing import Annotated

import typer

from objstore.cli.store import Store, asks, quoted
from objstore.config import ConfigError

tenant_app = typer.Typer(help="Tenants: who owns buckets.", no_args_is_help=True)
user_app = typer.Typer(help="Users of tenants.", no_args_is_help=True)
key_app = typer.Typer(help="Access keys of users.", no_args_is_help=True)

TenantName = Annotated[str, typer.Argument(help="The tenant's name.")]
UserName = Annotated[str, typer.Argument(help="The user's name.")]
KeyId = Annotated[str, typer.Argument(help="The access key id.")]
Undo = Annotated[bool, typer.Option("--undo", help="Enable again.")]


def _switch(store: Store, kind: str, name: str, *, disable: bool) -> None:
    verb = "disable" if disable else "enable"
    facts = store.post(f"/api/v1/{kind}/{quoted(name)}/{verb}")
    store.tell(f"{name}: {verb}d", facts)


# --- tenants --------------------------------------------------------------------------------------


@tenant_app.command("list")
@asks
def tenant_list(store: Store) -> None:
    """Every tenant. One is made with its first user: `objstore user create NAME --tenant TENANT`."""
    store.show(store.get("/api/v1/tenants")["tenants"], "name", "disabled", "created")


@tenant_app.command("show")
@asks
def tenant_show(store: Store, name: TenantName) -> None:
    """A tenant with its users, their access keys and its buckets."""
    found = store.get(f"/api/v1/tenants/{quoted(name)}")
    if store.show_whole(found):
        return
    store.show([{"what": what, "value": value} for what, value in found["facts"].items()], "what", "value")
    store.show(found["users"], "user", "disabled", "keys", "disabled_keys")
    store.show(found["buckets"], "bucket", "created", "owner")


@tenant_app.command("disable")
@asks
def tenant_disable(store: Store, name: TenantName, undo: Undo = False) -> None:
    """Refuse every request signed with a key of any of the tenant's users. Its data stay."""
    _switch(store, "tenants", name, disable=not undo)


@tenant_app.command("enable")
@asks
def tenant_enable(store: Store, name: TenantName) -> None:
    """Serve the tenant again. Users and keys that were disabled on their own stay so."""
    _switch(store, "tenants", name, disable=False)


# --- users ----------------------------------------------------------------------------------------


@user_app.command("create")
@asks
def user_create(
    store: Store,
    name: UserName,
    tenant: Annotated[
        str | None, typer.Option(help="The tenant; made if it is new.  [the user's name]", show_default=False)
    ] = None,
    email: Annotated[str, typer.Option(show_default=False)] = "",
) -> None:
    """Create a user. A bucket belongs to its creator's tenant and is closed to all others."""
    user = store.post("/api/v1/users", {"name": name, "tenant": tenant or name, "email": email})
    store.show([user], "name", "tenant")


@user_app.command("list")
@asks
def user_list(
    store: Store,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.", show_default=False)] = None,
) -> None:
    """Every user."""
    users = store.get("/api/v1/users")["users"]
    wanted = [user for user in users if tenant is None or user["tenant"] == tenant]
    store.show(wanted, "name", "tenant", "root", "disabled", "created", "email")


@user_app.command("disable")
@asks
def user_disable(store: Store, name: UserName, undo: Undo = False) -> None:
    """Refuse every request signed with the user's keys."""
    _switch(store, "users", name, disable=not undo)


@user_app.command("enable")
@asks
def user_enable(store: Store, name: UserName) -> None:
    """Accept the user's keys again."""
    _switch(store, "users", name, disable=False)


# --- access keys ----------------------------------------------------------------------------------


@key_app.command("create")
@asks
def key_create(
    store: Store,
    user: UserName,
    comment: Annotated[str, typer.Option(show_default=False)] = "",
    print_: Annotated[
        str | None,
        typer.Option("--print", help="Also print settings for: aws,rclone,boto3.", show_default=False),
    ] = None,
) -> None:
    """Create an access key. Its secret is shown now and never again."""
    from objstore.admin.snippets import SNIPPETS

    wanted = [tool for tool in (print_ or "").split(",") if tool]
    if unknown := [tool for tool in wanted if tool not in SNIPPETS]:
        raise ConfigError(f"--print {unknown[0]}: one of {', '.join(SNIPPETS)}")
    key = store.post("/api/v1/keys", {"user": user, "comment": comment})
    store.show([key], "access_key", "secret_key", "user")
    for tool in wanted:
        print()
        print(SNIPPETS[tool](key["endpoint"], key["region"], key["access_key"], key["secret_key"]))


@key_app.command("list")
@asks
def key_list(
    store: Store,
    user: Annotated[str | None, typer.Option(help="Only this user's.", show_default=False)] = None,
) -> None:
    """Every access key; secrets are never shown."""
    keys = store.get("/api/v1/keys")["keys"]
    wanted = [key for key in keys if user is None or key["user"] == user]
    store.show(wanted, "access_key", "user", "disabled", "created", "comment")


@key_app.command("disable")
@asks
def key_disable(store: Store, access_key: KeyId, undo: Undo = False) -> None:
    """Refuse every request signed with the key."""
    _switch(store, "keys", access_key, disable=not undo)


@key_app.command("enable")
@asks
def key_enable(store: Store, access_key: KeyId) -> None:
    """Accept the key again."""
    _switch(store, "keys", access_key, disable=False)
