"""The headers that have a grammar of their own."""

from __future__ import annotations

import pytest

from services.gateway.headers import (
    etag_matches,
    parse_idempotency_key,
    parse_last_event_id,
    parse_wait_preference,
)
from shared.errors import Problem


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], None),
        (["abc"], "abc"),
        (['"abc"'], "abc"),
        (["  abc  "], "abc"),
        ([r'"a\"b\\c"'], r'a"b\c'),
        (["a b;c=d"], "a b;c=d"),
        (["k" * 255], "k" * 255),
        (['"' + "k" * 255 + '"'], "k" * 255),
    ],
)
def test_a_key_is_the_same_quoted_and_bare(values: list[str], key: str | None) -> None:
    assert parse_idempotency_key(values) == key


@pytest.mark.parametrize(
    "values",
    [[""], ["   "], ['""'], ['"abc'], ['"a"b"'], [r'"a\b"'], ["k" * 256], ["é"], ["a\x7f"], ["a\tb"], ["a", "a"]],
)
def test_a_malformed_key_is_refused(values: list[str]) -> None:
    with pytest.raises(Problem) as refusal:
        parse_idempotency_key(values)
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_idempotency_key")


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([], None),
        (["wait=25"], 25),
        (["Wait = 7"], 7),
        (['wait="7"'], 7),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10"], 10),
        (["wait=10; foo=bar"], 10),
        (["wait=61"], 60),
        (["wait=999999999"], 60),
        (["wait=0"], 0),
        (["wait=3, wait=9"], 3),
    ],
)
def test_a_wait_preference_is_read_and_bounded(values: list[str], seconds: int | None) -> None:
    assert parse_wait_preference(values) == seconds


@pytest.mark.parametrize("value", ["wait=-1", "wait=ten", "wait", "wait=1.5", "wait=9999999999", "waiting=3", "wait=٣"])
def test_a_preference_that_is_not_understood_is_ignored(value: str) -> None:
    assert parse_wait_preference([value]) is None


@pytest.mark.parametrize(
    ("values", "matches"),
    [
        ([], False),
        (["*"], True),
        (['"a-1"'], True),
        (['W/"a-1"'], True),
        (['"x", "a-1"'], True),
        (['"x"', '"a-1"'], True),
        (['"a-2"'], False),
        (["a-1"], False),
        (['"a,b"'], False),
    ],
)
def test_if_none_match_names_the_tag_or_anything(values: list[str], matches: bool) -> None:
    assert etag_matches(values, '"a-1"') is matches


def test_a_stream_resumes_from_the_last_event_id() -> None:
    assert parse_last_event_id([]) is None
    assert parse_last_event_id([" 1048577 "]) == 1048577


@pytest.mark.parametrize("values", [["x"], ["-1"], ["1", "2"], [""], ["٣"], ["9" * 19], ["1" * 20]])
def test_a_last_event_id_that_is_no_cursor_is_refused(values: list[str]) -> None:
    with pytest.raises(Problem) as refusal:
        parse_last_event_id(values)
    assert refusal.value.code == "invalid_last_event_id"
