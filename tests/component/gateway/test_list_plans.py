"""The lists on tables that two accounts fill: each page reads its own rows, the last one and a newcomer's too."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import cast

import pytest

from services.gateway.store import AccountStore, RequestStore, SessionStore
from shared.postgres import Database
from tests.support.planning import Listening, index_conditions

ROWS = 5_000


@pytest.fixture
async def crowded(database: Database) -> AsyncIterator[Database]:
    """Analyzed, so that the planner knows that an account has half of all rows."""
    await database.execute("INSERT INTO accounts (id, name) VALUES ('acct_0', 'even'), ('acct_1', 'odd')")
    await database.execute(
        """
        INSERT INTO sessions (id, account_id, model, metadata)
        SELECT 'ses_' || lpad(n::text, 32, '0'), 'acct_' || n % 2, 'default', '{}' FROM generate_series(1, $1) AS n
        """,
        ROWS,
    )
    await database.execute(
        """
        INSERT INTO requests (id, session_id, account_id, seq, state, model, settings, input, metadata, fingerprint,
                              accepted_at, deadline_at, dispatched_at, ended_at, result)
        SELECT 'req_' || lpad(n::text, 32, '0'), 'ses_' || n % 2, 'acct_' || n % 2, n, 'completed', 'default', '{}',
               '[]', '{}', '', now(), now(), now(), now(), '{}'
        FROM generate_series(1, $1) AS n
        """,
        ROWS,
    )
    await database.execute(
        """
        INSERT INTO api_keys (id, account_id, scope, secret_hash, last_four)
        SELECT 'key_' || lpad(n::text, 32, '0'), 'acct_' || n % 2, 'account', n::text::bytea, '0000'
        FROM generate_series(1, $1) AS n
        """,
        ROWS,
    )
    await database.execute("ANALYZE sessions, requests, api_keys")
    yield database


async def test_each_list_is_read_from_the_index_of_its_owner_and_from_its_cursor_on(crowded: Database) -> None:
    listening = Listening()
    requests, sessions = RequestStore(cast("Database", listening)), SessionStore(cast("Database", listening))
    await requests.select_requests_before("acct_0", None, 20, None)
    await requests.select_requests_before("acct_0", None, 20, "failed")
    await requests.select_session_requests_before("ses_0", None, 20, None)
    await sessions.select_sessions_before("acct_0", None, 20)
    await AccountStore(cast("Database", listening)).select_keys_before("acct_0", None, 20)
    wanted = [
        ("requests_by_account", ("account_id", "id")),
        ("requests_by_account_and_state", ("account_id", "state", "id")),
        ("requests_session_id_seq_key", ("session_id", "seq")),
        ("sessions_by_account", ("account_id", "id")),
        ("api_keys_by_account", ("account_id", "id")),
    ]
    for sql, (index, columns) in zip(listening.statements, wanted, strict=True):
        ((read, condition),) = await index_conditions(crowded, sql)
        assert read == index
        assert all(re.search(rf"\(+{column}\W", condition) for column in columns), condition


async def test_who_has_nothing_is_shown_nothing_and_a_first_page_begins_at_the_newest(crowded: Database) -> None:
    requests, sessions = RequestStore(crowded), SessionStore(crowded)
    assert await requests.select_requests_before("acct_new", None, 20, None) == []
    assert await sessions.select_sessions_before("acct_new", None, 20) == []
    assert await AccountStore(crowded).select_keys_before("acct_new", None, 20) == []
    keys = await AccountStore(crowded).select_keys_before("acct_0", None, 2)
    assert [key.id for key in keys] == [f"key_{number:032}" for number in (ROWS, ROWS - 2)]
    newest = [one.id for one in await requests.select_requests_before("acct_0", None, 2, "completed")]
    assert newest == [f"req_{number:032}" for number in (ROWS, ROWS - 2)]
    assert [one.seq for one in await requests.select_session_requests_before("ses_1", None, 1, None)] == [ROWS - 1]
