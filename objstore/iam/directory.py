"""The directory of tenants, users and access keys: who a signature's key belongs to, and may it be used.

Concurrency: one instance a process, on its event loop. Opened secrets are cached with the very records they
came from; every look-up compares those with metadata, so that whatever an operator changes holds from the
next request on, in every process.
"""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from objstore.clock import Clock, SystemClock
from objstore.errors import BadArgument, Corrupt
from objstore.iam import keys, last_use, tenants, users
from objstore.iam.conditions import parse_network
from objstore.iam.keys import KeyTerms
from objstore.iam.policy import Policy, compile_policy
from objstore.iam.principal import NO_ACCOUNT, Bounds, Principal
from objstore.iam.roles import DEFAULT_ROLE, NOTHING, objects_policy
from objstore.iam.secrets import SecretBox
from objstore.ids import Randomness
from objstore.meta.kv import Kv, Versioned
from objstore.meta.schema import (
    AccessKeyRecord,
    AccountRecord,
    TenantRecord,
    UserRecord,
    access_key_key,
    account_key,
    decode,
    tenant_key,
    user_key,
)

CACHED_CREDENTIALS_MAX: Final = 10_000
CACHED_POLICIES_MAX: Final = 2 * 1024 * 1024  # Bytes of their policies as text; compiled, ten times that.
_CARRIED: Final = "cursor of a list"  # What hidden texts are bound to: no access key has this id.
ID_SIZE_MAX: Final = 128  # Characters: a longer id is nobody's, and is not looked up.


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """An access key, resolved through its user and tenant."""

    secret: str = field(repr=False)
    principal: Principal
    key_disabled: bool
    user_disabled: bool
    tenant_disabled: bool

    @property
    def disabled(self) -> bool:
        return self.key_disabled or self.user_disabled or self.tenant_disabled


@dataclass(slots=True, kw_only=True)
class _Cached:
    """An opened credential and the records it came from."""

    names: tuple[bytes, ...]
    values: list[bytes | None]
    credential: Credential
    version: tuple[int, int] | None = None  # The engine's, when the records were last seen unchanged.


def bounds_of(user: UserRecord, key: AccessKeyRecord) -> Bounds | None:
    """What the user's role and the key's own terms leave; None: whatever the tenant may.

    What cannot be read, since a later release wrote it, allows nothing.
    """
    policies: list[Policy] = []
    role = None if user.root else objects_policy(user.role)
    if role is not None:
        policies.append(role)
    if key.policy:
        try:
            policies.append(compile_policy(key.policy))
        except BadArgument:
            policies.append(NOTHING)
    networks = [parse_network(text) for text in key.networks]
    if None in networks:
        policies.append(NOTHING)
    if not policies and not networks and not key.expires_us:
        return None
    known = tuple(network for network in networks if network is not None)
    return Bounds(policies=tuple(policies), networks=known, expires_us=key.expires_us)


class Directory:
    def __init__(
        self,
        kv: Kv,
        master_key: bytes,
        *,
        other_master_keys: Sequence[bytes] = (),
        clock: Clock | None = None,
        randomness: Randomness = os.urandom,
    ) -> None:
        self._kv = kv
        self._box = SecretBox(master_key, randomness, other_master_keys)
        self._clock = clock if clock is not None else SystemClock()
        self._randomness = randomness
        self._version = kv.version if isinstance(kv, Versioned) else None
        self._cache: dict[str, _Cached] = {}
        self._cached_policies = 0  # Bytes.

    async def credential(self, access_key_id: str) -> Credential | None:
        """The credential behind an access key's id; None if there is no such key.

        Look at `disabled` before you trust it. Raises: Corrupt (the secret does not open), MetaUnavailable.
        """
        cached = self._cache.get(access_key_id)
        if cached is not None:
            version = None if self._version is None else self._version()
            if version is not None and version == cached.version:
                # Nothing at all was committed since: so it is most of the time, where reads prevail.
                return cached.credential
            if await self._kv.get_many(cached.names) == cached.values:
                cached.version = version
                return cached.credential
            del self._cache[access_key_id]
        return await self._resolve(access_key_id)

    async def _resolve(self, access_key_id: str) -> Credential | None:
        if len(access_key_id) > ID_SIZE_MAX or not access_key_id.isascii():
            return None
        key_name = access_key_key(access_key_id)
        key_value = await self._kv.get(key_name)
        if key_value is None:
            return None
        key = decode(key_value, AccessKeyRecord)
        user_name = user_key(key.user)
        user_value = await self._kv.get(user_name)
        if user_value is None:
            return None
        user = decode(user_value, UserRecord)
        tenant_name = tenant_key(user.tenant)
        tenant_value = await self._kv.get(tenant_name)
        if tenant_value is None:
            return None
        tenant = decode(tenant_value, TenantRecord)
        account_name = account_key(user.tenant)
        account_value = await self._kv.get(account_name)
        credential = Credential(
            secret=self._box.open(access_key_id, key.secret, key.sealed_under),
            principal=Principal(
                tenant=tenant.name,
                user=user.name,
                access_key_id=access_key_id,
                root=user.root,
                project=key.project,
                bounds=bounds_of(user, key),
                limits=None if key.limits == keys.NO_LIMITS else key.limits,
                account=NO_ACCOUNT if account_value is None else decode(account_value, AccountRecord),
            ),
            key_disabled=key.disabled,
            user_disabled=user.disabled,
            tenant_disabled=tenant.disabled,
        )
        self._cached_policies += len(key.policy)
        if len(self._cache) >= CACHED_CREDENTIALS_MAX or self._cached_policies > CACHED_POLICIES_MAX:
            self._cache.clear()
            self._cached_policies = len(key.policy)
        self._cache[access_key_id] = _Cached(
            names=(key_name, user_name, tenant_name, account_name),
            values=[key_value, user_value, tenant_value, account_value],
            credential=credential,
        )
        return credential

    async def bootstrap(
        self, access_key_id: str | None = None, secret: str | None = None
    ) -> tuple[str, str | None]:
        """Make sure of tenant "default", user "root" and a key of root's: the one given, or a made one.

        Returns the key's id, and its secret if it was made just now: show it once, it is not shown again.
        Idempotent; a given key that differs from what is stored replaces it. What an operator has disabled
        stays so: one is made only where root has no key at all, for this runs at every start.

        Raises: BadArgument (only one of the two given, not an id or a secret, or another user's key).
        """
        now_us = self._clock.now_us()
        if await self._kv.get(tenant_key(tenants.DEFAULT_TENANT)) is None:
            await tenants.create_tenant(self._kv, tenants.DEFAULT_TENANT, now_us=now_us)
        if await self._kv.get(user_key(users.ROOT_USER)) is None:
            await users.create_user(
                self._kv, users.ROOT_USER, tenant=tenants.DEFAULT_TENANT, now_us=now_us, root=True
            )
        if access_key_id is not None and secret is not None:
            await keys.give_key(self._kv, self._box, users.ROOT_USER, access_key_id, secret, now_us=now_us)
            return access_key_id, None
        if access_key_id is not None or secret is not None:
            raise BadArgument("give both the root access key and its secret, or neither", name="root")
        for one, _ in await keys.list_keys(self._kv, user=users.ROOT_USER, limit=1):
            return one, None
        return await self.create_key(users.ROOT_USER, comment="made at the first start")

    # What a client carries for us, and shall not read.

    def hide(self, text: str) -> str:
        """Sealed under the newest master key, for use in an address."""
        return base64.urlsafe_b64encode(self._box.seal(_CARRIED, text)).rstrip(b"=").decode()

    def reveal(self, hidden: str) -> str:
        """Raises: BadArgument: it is not what `hide` gave, or its master key is gone."""
        try:
            sealed = base64.b64decode(hidden + "=" * (-len(hidden) % 4), altchars=b"-_", validate=True)
            return self._box.open(_CARRIED, sealed)
        except (ValueError, Corrupt):
            raise BadArgument("this is not one of ours", name="cursor") from None

    # What the command line and the admin API ask for.

    async def create_tenant(self, name: str) -> TenantRecord:
        return await tenants.create_tenant(self._kv, name, now_us=self._clock.now_us())

    async def list_tenants(self, *, after: str = "", limit: int = 1_000) -> list[TenantRecord]:
        return await tenants.list_tenants(self._kv, after=after, limit=limit)

    async def find_tenant(self, name: str) -> TenantRecord:
        return await tenants.find_tenant(self._kv, name)

    async def set_tenant_disabled(self, name: str, disabled: bool = True) -> TenantRecord:
        return await tenants.set_tenant_disabled(self._kv, name, disabled)

    async def create_user(
        self, name: str, *, tenant: str = tenants.DEFAULT_TENANT, email: str = "", role: str = DEFAULT_ROLE
    ) -> UserRecord:
        return await users.create_user(
            self._kv, name, tenant=tenant, now_us=self._clock.now_us(), email=email, role=role
        )

    async def find_user(self, name: str) -> UserRecord:
        return await users.find_user(self._kv, name)

    async def set_role(self, name: str, role: str) -> UserRecord:
        return await users.set_role(self._kv, name, role)

    async def list_users(
        self, *, tenant: str | None = None, after: str = "", limit: int = 1_000
    ) -> list[UserRecord]:
        return await users.list_users(self._kv, tenant=tenant, after=after, limit=limit)

    async def set_user_disabled(self, name: str, disabled: bool = True) -> UserRecord:
        return await users.set_user_disabled(self._kv, name, disabled)

    async def create_key(
        self,
        user: str,
        *,
        access_key_id: str | None = None,
        secret: str | None = None,
        comment: str = "",
        terms: KeyTerms = keys.NO_TERMS,
    ) -> tuple[str, str]:
        return await keys.create_key(
            self._kv,
            self._box,
            user,
            now_us=self._clock.now_us(),
            randomness=self._randomness,
            access_key_id=access_key_id,
            secret=secret,
            comment=comment,
            terms=terms,
        )

    async def find_key(self, access_key_id: str) -> AccessKeyRecord:
        return await keys.find_key(self._kv, access_key_id)

    async def set_terms(self, access_key_id: str, terms: KeyTerms) -> AccessKeyRecord:
        return await keys.set_terms(self._kv, access_key_id, terms, now_us=self._clock.now_us())

    async def remove_key(self, access_key_id: str) -> None:
        await keys.remove_key(self._kv, access_key_id)

    async def last_used(self, access_key_ids: Sequence[str]) -> list[int | None]:
        """Seconds since 1970, to the hour; None: never, as far as is known."""
        return await last_use.last_used(self._kv, access_key_ids)

    async def list_keys(
        self, *, user: str | None = None, after: str = "", limit: int = 1_000
    ) -> list[tuple[str, AccessKeyRecord]]:
        return await keys.list_keys(self._kv, user=user, after=after, limit=limit)

    async def set_key_disabled(self, access_key_id: str, disabled: bool = True) -> AccessKeyRecord:
        return await keys.set_key_disabled(self._kv, access_key_id, disabled)
