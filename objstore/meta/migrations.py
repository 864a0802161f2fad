"""The tables of the PostgreSQL engine, in numbered steps.

A database is brought up to date by the first process of a new release that connects: under an advisory lock
and in one transaction, so that a step happens once and wholly. Which steps a database has seen is written
in it, with the release's least format that may still work with it: gateways of the previous release go on
while a new one has already migrated, unless a step says that they cannot.

    objstore.kv           key bytea primary key, value bytea     value: as put, then xxh3-64 of key and value
    objstore.clients      each process's last applied batch, and its session
    objstore.engine       name, value (text): engine, format, least, and what copies note here
    objstore.migrations   which steps were applied, when

**The rules of a batch** are two functions in the database, so that it costs three round trips (BEGIN; lock;
apply and COMMIT) and holds its locks for one and a bit of them.

`objstore.lock` takes the gate (below) and locks rows in the given order, run by run. A row that is to be
written is locked by an INSERT that finds it there and changes nothing; when it is absent, the INSERT has
made it, and so nobody else can: absence is protected by the very row that will be needed. Rows that are
only expected are locked FOR SHARE. It returns the values as they are under the locks; a key that was absent
comes back with NULL.

`objstore.apply` writes the outcome. Each row it touches is locked already. At last it moves the client's
own row: the batch's number, under the session of the connection. A connection that follows has taken
another session, so that what is left of an earlier one (a message on its way through a broken network) can
never be applied behind its back.

**The gate** is an advisory lock, taken shared by every batch. Shared row locks of several gateways can
overlap without end, and somebody who wants to change that row would wait for good: after its lock timeout
it comes again and takes the gate alone. The gate's queue is fair.

This module may not know asyncpg: connections are arguments.
"""

from typing import Any, NamedTuple

from objstore.errors import MetaUnavailable

ENGINE = "postgres"
LOCK = 0x6F626A73_746F7265  # Advisory lock for migrations: "objstore".
GATE = 0x6F626A73_67617465  # "objsgate".


class Migration(NamedTuple):
    number: int
    name: str
    least: int  # The least format that a release must know to work with the database afterwards.
    sql: str


MIGRATIONS = [
    Migration(
        1,
        "tables and functions",
        1,
        """
CREATE TABLE objstore.kv (key bytea PRIMARY KEY, value bytea NOT NULL) WITH (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.2
);
-- Records are short and mostly random bytes: compressing them is work for nothing.
ALTER TABLE objstore.kv ALTER COLUMN key SET STORAGE PLAIN, ALTER COLUMN value SET STORAGE EXTERNAL;

CREATE TABLE objstore.clients (
    client bytea PRIMARY KEY,
    session bigint NOT NULL,
    number bigint NOT NULL,
    touched timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE FUNCTION objstore.lock(keys bytea[], fresh bytea[], runs int[], wanted bytea[], alone boolean)
RETURNS TABLE (held_key bytea, held_value bytea) LANGUAGE plpgsql AS $body$
DECLARE
    run int;
    first int := 1;
    made bytea[] := '{}';
    now_made bytea[];
BEGIN
    IF alone THEN
        PERFORM pg_advisory_xact_lock(GATE);
    ELSE
        PERFORM pg_advisory_xact_lock_shared(GATE);
    END IF;
    FOREACH run IN ARRAY runs LOOP
        IF run > 0 THEN
            WITH inserted AS (
                INSERT INTO objstore.kv AS kv (key, value)
                SELECT u.key, u.value
                FROM unnest(keys[first:run], fresh[first:run]) WITH ORDINALITY AS u (key, value, n)
                ORDER BY u.n
                ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE false
                RETURNING kv.key
            )
            SELECT array_agg(inserted.key) INTO now_made FROM inserted;
            made := made || coalesce(now_made, '{}');
        ELSE
            -- Only what is returned here is locked: a row that appears later must not be taken for one that
            -- is.
            RETURN QUERY
            SELECT kv.key, kv.value
            FROM unnest(keys[first:-run]) WITH ORDINALITY AS u (key, n)
            JOIN objstore.kv AS kv ON kv.key = u.key
            ORDER BY u.n
            FOR SHARE OF kv;
        END IF;
        first := abs(run) + 1;
    END LOOP;
    -- A statement of its own, so that it sees what the ones it waited for have left.
    RETURN QUERY
    SELECT kv.key, kv.value
    FROM (SELECT unnest(wanted) EXCEPT SELECT unnest(made)) AS w (key)
    JOIN objstore.kv AS kv ON kv.key = w.key;
    RETURN QUERY SELECT m.key, NULL::bytea FROM unnest(made) AS m (key);
END
$body$;

CREATE FUNCTION objstore.apply(
    of_client bytea, of_session bigint, batch bigint, put bytea[], put_value bytea[], gone bytea[]
) RETURNS void LANGUAGE plpgsql AS $body$
DECLARE
    count bigint;
BEGIN
    UPDATE objstore.kv SET value = u.value
    FROM unnest(put, put_value) AS u (key, value) WHERE kv.key = u.key;
    GET DIAGNOSTICS count = ROW_COUNT;
    IF count <> cardinality(put) THEN
        RAISE EXCEPTION '% of % rows found', count, cardinality(put) USING ERRCODE = 'OB002';
    END IF;
    DELETE FROM objstore.kv USING unnest(gone) AS u (key) WHERE kv.key = u.key;
    GET DIAGNOSTICS count = ROW_COUNT;
    IF count <> cardinality(gone) THEN
        RAISE EXCEPTION '% of % rows found', count, cardinality(gone) USING ERRCODE = 'OB002';
    END IF;
    UPDATE objstore.clients SET number = batch, touched = now()
    WHERE client = of_client AND session = of_session AND number < batch;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another connection speaks for this client' USING ERRCODE = 'OB001';
    END IF;
END
$body$;
""".replace("GATE", str(GATE)),
    ),
]

FORMAT = MIGRATIONS[-1].number

_FIRST = """
CREATE SCHEMA IF NOT EXISTS objstore;
CREATE TABLE IF NOT EXISTS objstore.engine (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE IF NOT EXISTS objstore.migrations (
    number int PRIMARY KEY, name text NOT NULL, applied timestamptz NOT NULL DEFAULT now()
);
"""


async def migrate(connection: Any) -> int:
    """Bring the database up to date; returns how many steps were applied.

    Args:
        connection: an asyncpg connection outside a transaction.

    Raises: MetaUnavailable if the database belongs to another engine or to a release that is too new.
    """
    if await is_current(connection):
        return 0
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0")
        await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
        await connection.execute(_FIRST)
        done: int = await connection.fetchval("SELECT coalesce(max(number), 0) FROM objstore.migrations")
        steps = [step for step in MIGRATIONS if step.number > done]
        for step in steps:
            await connection.execute(step.sql)
            await connection.execute(
                "INSERT INTO objstore.migrations (number, name) VALUES ($1, $2)", step.number, step.name
            )
        if steps:
            facts = [("engine", ENGINE), ("format", str(FORMAT)), ("least", str(max(s.least for s in steps)))]
            await connection.executemany(
                "INSERT INTO objstore.engine (name, value) VALUES ($1, $2)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                facts,
            )
    if not await is_current(connection):
        raise MetaUnavailable("the database's tables are not as this release made them")
    return len(steps)


async def is_current(connection: Any) -> bool:
    """Whether nothing is to be done. Raises: MetaUnavailable."""
    if await connection.fetchval("SELECT to_regclass('objstore.engine')") is None:
        return False
    facts = {row["name"]: row["value"] for row in await connection.fetch("SELECT * FROM objstore.engine")}
    if not facts:
        return False
    if facts.get("engine") != ENGINE:
        raise MetaUnavailable(f"the database holds metadata of engine {facts.get('engine')!r}, not {ENGINE}")
    found, least = int(facts["format"]), int(facts["least"])
    if least > FORMAT:
        raise MetaUnavailable(
            f"the database has format {found}, which needs a release that knows {least}:"
            f" this one knows {FORMAT}"
        )
    return found >= FORMAT
