"""`.local/env`: everything a script needs to use the running stack, as shell exports."""

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from deploy.local.environment import LLM, STRIPE
from deploy.local.seed import Account
from deploy.local.stack import Stack

ROOT_NAME = "PARLEY_LOCAL_ROOT"
NAMES_NAME = "PARLEY_LOCAL_NAMES"
"""`NAME=digest of its value`, with commas between: what somebody has set to another value since is theirs."""
OF_THE_SERVICES = ("SERVICE_TOKEN", "API_KEY_PEPPER", "STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRETS", "PLANS_FILE")
"""What the services' own commands need besides addresses."""


def env_of(stack: Stack, account: Account) -> dict[str, str]:
    made = {
        "PARLEY_URL": stack.url("gateway"),
        "PARLEY_API_KEY": account.key,
        "PARLEY_ADMIN_KEY": stack.admin_key(),
        "BILLING_URL": stack.url("billing"),
        "RESULTS_URL": stack.url("results"),
        **stack.urls,
        **{name: stack.processes["gateway"].environ[name] for name in OF_THE_SERVICES},
    }
    if stack.has_standin(STRIPE):
        made["STRIPE_API_BASE"] = stack.url(STRIPE)
        made["STRIPE_WEBHOOK_SECRET"] = stack.secrets.stripe_webhook_secret
        made["STRIPE_CONTROL_URL"] = stack.ops_url(STRIPE)
    if stack.has_standin(LLM):
        made["LLM_CONTROL_URL"] = stack.ops_url(LLM)
    return made


def write(file: Path, root: Path, values: Mapping[str, str]) -> None:
    digests = (f"{name}={_digest(value)}" for name, value in values.items())
    named = {**values, ROOT_NAME: str(root), NAMES_NAME: ",".join(digests)}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in named.items()]
    file.touch(mode=0o600)
    file.write_text("\n".join(["# Written by make run and make up; read it with `. .local/env`.", *lines]) + "\n")


def without_own(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what an earlier `. .local/env` put there, of whatever root: these are addresses and keys
    of a stack that is gone or another's, not servers that somebody gives us."""
    own = {ROOT_NAME, NAMES_NAME}
    for entry in environ.get(NAMES_NAME, "").split(","):
        name, _, digest = entry.partition("=")
        if digest == _digest(environ.get(name, "")):
            own.add(name)
    return {name: value for name, value in environ.items() if name not in own}


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:16]
