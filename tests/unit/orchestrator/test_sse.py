"""Server-sent events out of bytes, however they were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.providers import sse
from services.orchestrator.providers.sse import EventStream, LineTooLong

STREAM = (
    b'\xef\xbb\xbf: keep-alive\r\n\r\ndata: {"a":1}\n\nevent: x\rdata:{"b":"\xe2\x80\xa8\xc2\x85"}\r\r'
    b"id: 7\r\ndata: one\r\ndata: two\r\n\r\ndata\n\ndata: \n\ndata: [DONE]\n\n"
)
EVENTS = [b'{"a":1}', b'{"b":"\xe2\x80\xa8\xc2\x85"}', b"one\ntwo", b"", b"", b"[DONE]"]


def read(chunks: list[bytes]) -> list[bytes]:
    stream = EventStream()
    return [event for chunk in chunks for event in stream.feed(chunk)]


@given(st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=40))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(STREAM)]
    assert read([STREAM[start:end] for start, end in pairwise(at)]) == EVENTS


def test_events_are_the_same_byte_by_byte() -> None:
    assert read([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS


def test_an_event_without_its_empty_line_is_not_one() -> None:
    assert read([b"data: cut off\n"]) == []


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)))
def test_any_text_on_one_line_comes_through(texts: list[str]) -> None:
    body = b"".join(b"data: " + text.encode() + b"\r\n\r\n" for text in texts)
    assert read([body]) == [text.encode() for text in texts]


def test_a_line_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LINE_BYTES_MAX", 100)
    stream = EventStream()
    with pytest.raises(LineTooLong):
        for _ in range(20):
            stream.feed(b"data: 12345678")


def test_an_event_of_many_lines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LINE_BYTES_MAX", 100)
    stream = EventStream()
    with pytest.raises(LineTooLong):
        for _ in range(20):
            stream.feed(b"data: 12345678\n")
