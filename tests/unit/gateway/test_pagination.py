"""Cursors of lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.pagination import CURSOR_LENGTH_MAX, decode_cursor, decode_seq_cursor, encode_cursor
from shared.errors import Problem
from shared.ids import new_id


def test_a_cursor_comes_back_as_its_position() -> None:
    session_id = new_id("ses")
    cursor = encode_cursor("sessions", session_id)
    assert decode_cursor("sessions", cursor) == session_id
    assert len(cursor) <= CURSOR_LENGTH_MAX
    assert decode_seq_cursor("messages", encode_cursor("messages", 17)) == 17
    assert decode_cursor("sessions", None) is None


def test_a_cursor_of_another_list_is_refused() -> None:
    with pytest.raises(Problem, match="invalid_cursor"):
        decode_cursor("requests", encode_cursor("sessions", new_id("ses")))


def test_an_id_is_no_place_in_a_session() -> None:
    with pytest.raises(Problem, match="invalid_cursor"):
        decode_seq_cursor("messages", encode_cursor("messages", new_id("req")))


def test_a_damaged_cursor_is_refused() -> None:
    cursor = encode_cursor("sessions", new_id("ses"))
    for place in range(len(cursor)):
        other = "A" if cursor[place] != "A" else "B"
        with pytest.raises(Problem, match="invalid_cursor"):
            decode_cursor("sessions", cursor[:place] + other + cursor[place + 1 :])


@given(st.text(max_size=CURSOR_LENGTH_MAX))
def test_any_other_text_is_refused_and_breaks_nothing(text: str) -> None:
    with pytest.raises(Problem, match="invalid_cursor"):
        decode_cursor("sessions", text)
