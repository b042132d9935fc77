"""Ids: their form, and that they sort by time."""

from shared.ids import is_id, new_id


def test_ids_carry_their_kind_and_sort_in_the_order_they_were_made() -> None:
    made = [new_id("req") for _ in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == 1000
    assert all(is_id("req", one) for one in made)


def test_another_kind_or_form_is_no_id() -> None:
    good = new_id("req")
    for text in (
        "",
        "req_",
        good[:-1],
        good + "0",
        good.upper(),
        good.replace("req", "ses"),
        f"{good}\n",
        "req_" + "g" * 32,
    ):
        assert not is_id("req", text)
