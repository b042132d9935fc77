"""Numbered forward SQL migrations: applied under an advisory lock, each with its checksum kept."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import ParleyError
from shared.logs import get_logger
from shared.postgres import NOT_MADE_YET, Connection, Database, DatabaseRefused, DatabaseUnavailable

log = get_logger(__name__)

SHARED_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_FILE_NAME: Final = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_RETRY_SECONDS: Final = 2.0
_LOCK_KEY: Final = 7_265_871_002
"""Any number, the same for every process that migrates a Parley database."""


class SchemaMismatch(ParleyError):
    """The database's schema is not the one that this code was written for."""


@dataclass(frozen=True)
class Migration:
    """One file: `shared/0001`, `gateway/0001`, ..."""

    version: str
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(dsn: str, service: str, folder: Path, *, wait_seconds: float = 0.0) -> list[str]:
    """Bring a service's database to the newest schema; returns the versions applied now. Where a cluster is being set
    up its server, role or database may come while this waits for them."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + wait_seconds
    while True:
        try:
            return await _migrate_once(dsn, service, folder)
        except (DatabaseUnavailable, DatabaseRefused) as error:
            is_to_come = isinstance(error, DatabaseUnavailable) or error.sqlstate in NOT_MADE_YET
            if not is_to_come or loop.time() >= ends_at:
                raise
            log.warning("migration.waiting", error=str(error))
        await asyncio.sleep(_RETRY_SECONDS)


async def _migrate_once(dsn: str, service: str, folder: Path) -> list[str]:
    database = Database(dsn, service=f"{service}-migrate", pool_max=2, statement_timeout_seconds=600)
    await database.start()
    try:
        return await apply(database, read_migrations(service, folder))
    finally:
        await database.stop()


async def apply(database: Database, migrations: Sequence[Migration]) -> list[str]:
    """Apply what is missing, all in one transaction: a failed migration leaves nothing behind."""
    async with database.transaction() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
        await connection.execute(
            """
            CREATE TABLE IF NOT EXISTS schema_migrations (
                version text PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )
            """
        )
        missing = _missing(migrations, await _select_applied(connection))
        for migration in missing:
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
            log.info("migration.applied", version=migration.version, name=migration.name)
    return [migration.version for migration in missing]


async def check(database: Database, migrations: Sequence[Migration]) -> None:
    """Raise SchemaMismatch where the database is older than the code, or was migrated from other files."""
    async with database.connection() as connection:
        if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
            raise SchemaMismatch("the database has no schema yet: run the service's `migrate` command first")
        missing = _missing(migrations, await _select_applied(connection))
    if missing:
        versions = ", ".join(migration.version for migration in missing)
        raise SchemaMismatch(f"the database lacks {versions}: run the service's `migrate` command first")


def read_migrations(service: str, folder: Path) -> list[Migration]:
    """The shared migrations, then the service's own, each in the order of its numbers."""
    return [*_read_folder("shared", SHARED_MIGRATIONS), *_read_folder(service, folder)]


def _read_folder(owner: str, folder: Path) -> list[Migration]:
    migrations = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.match(path.name)
        if match is None:
            raise SchemaMismatch(f"{path.name} is not named like 0001_create_things.sql")
        migrations.append(Migration(f"{owner}/{match[1]}", path.stem, path.read_text()))
    if len({migration.version for migration in migrations}) != len(migrations):
        raise SchemaMismatch(f"two migrations of {owner} have the same number")
    return migrations


async def _select_applied(connection: Connection) -> dict[str, str]:
    rows = await connection.fetch("SELECT version, checksum FROM schema_migrations")
    return {row["version"]: row["checksum"] for row in rows}


def _missing(migrations: Sequence[Migration], applied: dict[str, str]) -> list[Migration]:
    for migration in migrations:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise SchemaMismatch(f"{migration.version} was changed after it was applied: write a new migration instead")
    return [migration for migration in migrations if migration.version not in applied]
