"""The operator's command for parked messages."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from shared.messaging.parking import Parking
from shared.migrate import apply, read_migrations
from shared.operations import add_parked_arguments, run_parked
from shared.postgres import Database, DatabaseRefused
from tests.support.servers import Databases


async def parked(dsn: str, *words: str) -> int:
    parser = argparse.ArgumentParser()
    add_parked_arguments(parser)
    return await run_parked("test", SimpleNamespace(database_url=SecretStr(dsn)), parser.parse_args(words))


async def test_a_list_of_nothing_says_so_beside_the_lines_that_programs_read(
    databases: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn = await databases.empty()
    database = Database(dsn, service="test")
    await database.start()
    await apply(database, read_migrations("test", Path("no/such/folder")))
    capsys.readouterr()
    assert await parked(dsn, "list") == 0
    said = capsys.readouterr()
    assert (said.err, said.out) == ("There are no parked messages.\n", "")
    await database.execute(
        """
        INSERT INTO parked_messages (queue, digest, reason, headers, body, body_sha256)
        VALUES ('gateway.results', 'd', 'bad', '{}', '', 's')
        """
    )
    capsys.readouterr()
    assert await parked(dsn, "list") == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["reason"] == "bad"
    assert "There are no" not in said.err
    await database.stop()


@pytest.mark.parametrize("words", [["show"], ["replay"], ["drop"], ["drop", "--all"]])
async def test_without_ids_nothing_passes_for_done(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert await parked("postgresql://nobody@127.0.0.1:1/nothing", *words) == 2
    assert f"parked {words[0]} needs the ids" in capsys.readouterr().err


async def test_a_message_parked_again_before_its_replay_is_marked_stays_in_the_list(databases: Databases) -> None:
    database = Database(await databases.empty(), service="test")
    await database.start()
    await apply(database, read_migrations("test", Path("no/such/folder")))
    parked_id = await database.fetchval(
        """
        INSERT INTO parked_messages (queue, digest, reason, headers, body, body_sha256)
        VALUES ('gateway.results', 'd', 'bad', '{}', '', 's') RETURNING id
        """
    )
    parking = Parking(database)
    row = await parking.select_for_replay(parked_id)
    assert row is not None
    await database.execute("UPDATE parked_messages SET times_parked = times_parked + 1, replayed_at = NULL")
    await parking.update_replayed(parked_id, row["times_parked"])
    assert [waiting.id for waiting in await parking.select_page()] == [parked_id]
    await parking.update_replayed(parked_id, row["times_parked"] + 1)
    assert await parking.select_page() == []
    await database.stop()


async def test_a_database_without_tables_says_what_to_do(databases: Databases) -> None:
    with pytest.raises(DatabaseRefused, match="run the service's `migrate` command first"):
        await parked(await databases.empty(), "list")


@pytest.mark.parametrize("text", ["0", "-1", "x", "99999999999999999999"])
async def test_what_is_no_id_is_refused_before_the_database_is_asked(text: str) -> None:
    with pytest.raises(SystemExit):
        await parked("postgresql://nobody@127.0.0.1:1/none", "drop", "--", text)
