"""Keys: their form, their checksum, and what is kept of them."""

from __future__ import annotations

import pytest

from services.gateway.api_keys import Scope, hash_key, is_well_formed, new_key

PEPPER = "a-pepper-for-tests"


@pytest.mark.parametrize(("scope", "prefix"), [("account", "pk_live_"), ("admin", "pa_live_")])
def test_a_new_key_names_its_kind_and_is_well_formed(scope: Scope, prefix: str) -> None:
    key = new_key(scope, PEPPER)
    assert key.text.startswith(prefix)
    assert len(key.text) == len(prefix) + 43 + 6
    assert is_well_formed(key.text)
    assert key.text.endswith(key.last_four)


def test_two_keys_are_never_the_same() -> None:
    assert len({new_key("account", PEPPER).text for _ in range(100)}) == 100


def test_any_single_changed_character_breaks_the_checksum() -> None:
    text = new_key("account", PEPPER).text
    for place in range(len(text)):
        other = "x" if text[place] != "x" else "y"
        assert not is_well_formed(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize("text", ["", "pk_live_", "pk_test_" + "a" * 49, "pk_live_" + "é" * 49, "a" * 1000])
def test_what_is_not_a_key_is_not_well_formed(text: str) -> None:
    assert not is_well_formed(text)


def test_what_is_stored_depends_on_the_pepper_and_not_only_on_the_key() -> None:
    key = new_key("account", PEPPER)
    assert key.secret_hash == hash_key(key.text, PEPPER)
    assert key.secret_hash != hash_key(key.text, "another-pepper-entirely")
    assert key.text.encode() not in key.secret_hash
