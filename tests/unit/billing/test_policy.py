"""PLANS_FILE: read into frozen plans, or refused with everything that is wrong with it."""

from pathlib import Path

import pytest

from services.billing.policy import PolicyInvalid, load_policy, parse_policy

LOCAL = Path(__file__).parents[3] / "deploy" / "local" / "plans.toml"


def test_the_plans_of_the_local_stack_are_usable() -> None:
    policy = load_policy(LOCAL, livemode=False)
    assert policy.plan_of_price == {"price_parley_pro": "pro", "price_parley_basic": "basic"}
    assert policy.free is None
    assert policy.plans["pro"].models is None


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(
            {
                "plan": {},
                "plans": {
                    "pro": {"stripe_prices": ["price_1"], "quota_tokens": -1, "colour": "red"},
                    "basic": {"stripe_prices": ["price_2"]},
                    "twin": {"stripe_prices": ["price_2"]},
                    "nothing": {},
                    "free": {"stripe_prices": ["price_3"]},
                    "wrong": {"stripe_prices": "price_4", "overage": "yes"},
                },
            },
            livemode=False,
        )
    places = [problem.partition(":")[0] for problem in caught.value.problems]
    assert places == [
        "plan",
        "plans.pro.quota_tokens",
        "plans.pro.colour",
        "plans.wrong.stripe_prices",
        "plans.wrong.overage",
        "plans.twin.stripe_prices",
        "plans.nothing.stripe_prices",
        "plans.free.stripe_prices",
    ]


@pytest.mark.parametrize("text", ["", "[plans]", "plans = 3", "[plans.pro", "\xff"])
def test_a_file_without_plans_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plans.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PolicyInvalid):
        load_policy(path, livemode=False)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyInvalid, match=r"absent\.toml cannot be read"):
        load_policy(tmp_path / "absent.toml", livemode=False)
