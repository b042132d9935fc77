"""Plans as data: read from PLANS_FILE once, frozen, and named by a hash that every decision records."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ParleyError

FREE_PLAN = "free"
"""The plan of an account without a subscription, where the file has one."""

Name = Annotated[str, Field(min_length=1, max_length=128)]


class PolicyInvalid(ParleyError):
    """PLANS_FILE cannot be used; `problems` has one line for each thing to correct."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n  ".join(["PLANS_FILE is not usable:", *problems]))
        self.problems = problems


class Plan(BaseModel):
    """What one plan permits. Where `models` or `quota_tokens` is None, everything."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    stripe_prices: tuple[Name, ...] = Field(default=(), strict=False)
    features: tuple[Name, ...] = Field(default=("chat",), strict=False)
    models: tuple[Name, ...] | None = Field(default=None, strict=False)
    quota_tokens: int | None = Field(default=None, ge=0, le=10**15)
    past_due_grace_days: float = Field(default=7, ge=0, le=365, strict=False)
    overage: bool = False


class Policy(BaseModel):
    """All plans, and whether the facts must come from Stripe's live mode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    livemode: bool
    plans: Mapping[str, Plan]

    @cached_property
    def version(self) -> str:
        """A hash of everything in it: two decisions of one version were made by the same rules."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]

    @cached_property
    def plan_of_price(self) -> Mapping[str, str]:
        return {price: name for name, plan in self.plans.items() for price in plan.stripe_prices}

    @property
    def free(self) -> Plan | None:
        return self.plans.get(FREE_PLAN)


def load_policy(path: Path, *, livemode: bool) -> Policy:
    """The plans of the file. Raises PolicyInvalid with all of its problems."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyInvalid([f"{path} cannot be read: {error}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise PolicyInvalid([f"{path} is not TOML: {error}"]) from None
    return parse_policy(document, livemode=livemode)


def parse_policy(document: Mapping[str, Any], *, livemode: bool) -> Policy:
    """The same, from the parsed file."""
    problems = [f"{key}: is not known here, only [plans.NAME] is" for key in document if key != "plans"]
    tables = document.get("plans", {})
    if not isinstance(tables, Mapping) or not tables:
        raise PolicyInvalid([*problems, "plans: at least one [plans.NAME] table is needed"])
    plans: dict[str, Plan] = {}
    for name, table in tables.items():
        try:
            plans[name] = Plan.model_validate(table)
        except ValidationError as error:
            problems += [_describe(name, dict(problem)) for problem in error.errors(include_url=False)]
    problems += _misplaced_prices(plans)
    if problems:
        raise PolicyInvalid(problems)
    return Policy(livemode=livemode, plans=plans)


def _describe(plan: str, problem: dict[str, Any]) -> str:
    place = ".".join(["plans", plan, *(str(part) for part in problem["loc"])])
    return f"{place}: {problem['msg']}"


def _misplaced_prices(plans: Mapping[str, Plan]) -> list[str]:
    problems: list[str] = []
    owner: dict[str, str] = {}
    for name, plan in plans.items():
        if name != FREE_PLAN and not plan.stripe_prices:
            problems.append(f"plans.{name}.stripe_prices: at least one price is needed (only `{FREE_PLAN}` has none)")
        if name == FREE_PLAN and plan.stripe_prices:
            problems.append(f"plans.{name}.stripe_prices: the plan without a subscription cannot have a price")
        for price in plan.stripe_prices:
            if owner.setdefault(price, name) != name:
                problems.append(f"plans.{name}.stripe_prices: {price} already belongs to the plan {owner[price]}")
    return problems
