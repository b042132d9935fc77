"""The database module against a real PostgreSQL: two kinds of error, bounded waits, migrations."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared import migrate as migrating
from shared.migrate import SchemaMismatch, apply, check, migrate, read_migrations
from shared.postgres import Database, DatabaseRefused, DatabaseUnavailable
from tests.support.guard import GUARD_SECONDS
from tests.support.servers import Databases


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[Database]:
    database = Database(await databases.empty(), service="test", pool_max=2, acquire_timeout_seconds=GUARD_SECONDS)
    await database.start()
    await database.execute(
        "CREATE TABLE thing (id int PRIMARY KEY, size int CONSTRAINT size_positive CHECK (size > 0))"
    )
    yield database
    await database.stop()


async def test_a_bad_row_is_refused_with_its_constraint_and_none_of_its_values(database: Database) -> None:
    with pytest.raises(DatabaseRefused) as refused:
        await database.execute("INSERT INTO thing VALUES (1, -7261)")
    assert (refused.value.sqlstate, refused.value.constraint_name) == ("23514", "size_positive")
    assert "7261" not in str(refused.value)


@pytest.mark.parametrize("size", ["seven", 2**40])
async def test_a_value_of_the_wrong_type_is_refused(database: Database, size: object) -> None:
    with pytest.raises(DatabaseRefused):
        await database.execute("INSERT INTO thing VALUES (1, $1)", size)


async def test_a_statement_is_planned_once_for_a_session_however_often_it_is_used(database: Database) -> None:
    sql = "SELECT id FROM thing WHERE id = ANY($1::int[])"
    async with database.connection() as connection:
        for size in range(1, 21):
            await connection.fetch(sql, list(range(size)))
        plans = await connection.fetchrow(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1", sql
        )
    assert plans is not None
    assert tuple(plans) == (20, 0)


async def test_a_statement_that_takes_too_long_is_unavailable_and_the_pool_lives_on(databases: Databases) -> None:
    database = Database(
        await databases.empty(), service="test", acquire_timeout_seconds=GUARD_SECONDS, statement_timeout_seconds=0.5
    )
    await database.start()
    with pytest.raises(DatabaseUnavailable):
        await database.execute("SELECT pg_sleep(300)")
    assert await database.fetchval("SELECT 1") == 1
    await database.stop()


async def test_a_pool_in_full_use_answers_unavailable_instead_of_waiting_for_ever(database: Database) -> None:
    async with database.connection(), database.connection():
        database._acquire_timeout_seconds = 0.2
        with pytest.raises(DatabaseUnavailable):
            await database.fetchval("SELECT 1")
    database._acquire_timeout_seconds = GUARD_SECONDS
    assert await database.fetchval("SELECT 1") == 1


async def test_a_killed_connection_is_unavailable_once_and_replaced(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable):
        await database.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert await database.fetchval("SELECT 1") == 1


async def test_an_exception_inside_a_transaction_rolls_it_back(database: Database) -> None:
    class Boom(Exception):
        pass

    with pytest.raises(Boom):
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO thing VALUES (1, 1)")
            raise Boom
    assert await database.fetchval("SELECT count(*) FROM thing") == 0


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none", service="test")
    with pytest.raises(DatabaseUnavailable):
        await database.start()


def _write(folder: Path, name: str, sql: str) -> None:
    (folder / name).write_text(sql)


async def test_migrations_run_once_in_order_also_when_many_processes_start_them(
    databases: Databases, tmp_path: Path
) -> None:
    dsn = await databases.empty()
    _write(tmp_path, "0001_create_a.sql", "CREATE TABLE a (id int);")
    _write(tmp_path, "0002_fill_a.sql", "INSERT INTO a VALUES (1);")
    applied = await asyncio.gather(*(migrate(dsn, "test", tmp_path) for _ in range(4)))
    assert sorted(len(versions) for versions in applied) == [0, 0, 0, 3]
    database = Database(dsn, service="test")
    await database.start()
    try:
        assert await database.fetchval("SELECT count(*) FROM a") == 1
        await check(database, read_migrations("test", tmp_path))
    finally:
        await database.stop()


@asynccontextmanager
async def _not_there(dsn: str) -> AsyncIterator[None]:
    server, _, name = dsn.rpartition("/")
    postgres = Database(f"{server}/postgres", service="test", pool_max=1)
    await postgres.start()
    await postgres.execute(f"ALTER DATABASE {name} RENAME TO {name}_away")
    try:
        yield
    finally:
        await postgres.execute(f"ALTER DATABASE {name}_away RENAME TO {name}")
        await postgres.stop()


async def test_a_migration_that_may_wait_is_done_once_its_database_is_there(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = await databases.empty()
    _write(tmp_path, "0001_create_a.sql", "CREATE TABLE a (id int);")
    monkeypatch.setattr(migrating, "_RETRY_SECONDS", 0.01)
    tried = asyncio.Event()
    monkeypatch.setattr(migrating.log, "warning", lambda *_, **__: tried.set())
    async with _not_there(dsn):
        with pytest.raises(DatabaseRefused, match="no database of this name"):
            await migrate(dsn, "test", tmp_path)
        assert not tried.is_set()
        waiting = asyncio.create_task(migrate(dsn, "test", tmp_path, wait_seconds=GUARD_SECONDS))
        async with asyncio.timeout(GUARD_SECONDS):
            await tried.wait()
        assert not waiting.done()
    assert await waiting == ["shared/0001", "test/0001"]


async def test_what_would_never_come_is_not_waited_for(databases: Databases, tmp_path: Path) -> None:
    _write(tmp_path, "0001_break.sql", "CREATE TABLE b (id nonsense);")
    with pytest.raises(DatabaseRefused):
        await migrate(await databases.empty(), "test", tmp_path, wait_seconds=GUARD_SECONDS)


async def test_a_failed_migration_leaves_nothing_behind(database: Database, tmp_path: Path) -> None:
    _write(tmp_path, "0001_create_a.sql", "CREATE TABLE a (id int);")
    _write(tmp_path, "0002_break.sql", "CREATE TABLE b (id nonsense);")
    with pytest.raises(DatabaseRefused):
        await apply(database, read_migrations("test", tmp_path))
    assert await database.fetchval("SELECT to_regclass('a')") is None


async def test_an_old_schema_and_a_changed_file_are_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match="no schema yet"):
        await check(database, read_migrations("test", tmp_path))
    _write(tmp_path, "0001_create_a.sql", "CREATE TABLE a (id int);")
    await apply(database, read_migrations("test", tmp_path))
    _write(tmp_path, "0002_create_b.sql", "CREATE TABLE b (id int);")
    with pytest.raises(SchemaMismatch, match="lacks test/0002"):
        await check(database, read_migrations("test", tmp_path))
    _write(tmp_path, "0001_create_a.sql", "CREATE TABLE a (id bigint);")
    with pytest.raises(SchemaMismatch, match="changed after"):
        await apply(database, read_migrations("test", tmp_path))
