"""`python -m deploy.local.run serve|up|down|clean`: the whole system on this machine, for the `make` targets."""

import argparse
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.local import env_file, servers
from deploy.local.daemon import DaemonError
from deploy.local.demo import show_one_request
from deploy.local.environment import LLM, REPOSITORY, SERVICES, STRIPE, PortError, check_gateway_port
from deploy.local.plain_http import CallError
from deploy.local.seed import Account, SeedError, await_allow, eligibility, make_account, subscribe
from deploy.local.servers.find import ServersError
from deploy.local.stack import Stack, running, stop_all
from shared import logs
from shared.errors import ParleyError
from shared.migrate import SchemaMismatch

ROOT = REPOSITORY / ".local"
ENV_FILE = ROOT / "env"
OWNER_FILE = ROOT / "owner"
WATCH_SECONDS = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy.local.run", description=__doc__)
    parser.add_argument("action", choices=["serve", "up", "down", "clean"])
    action = parser.parse_args().action
    logs.configure("launcher", "WARNING")
    # A SIGTERM ends `make run` as Ctrl-C does; and a shell starts what it runs in the background with SIGINT ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return {"serve": serve, "up": up, "down": down, "clean": clean}[action]()
    except SchemaMismatch as error:
        print(f"error: {error}\n  or begin with empty databases: rm -rf {ROOT / 'postgres'}", file=sys.stderr)
        return 1
    except (ServersError, DaemonError, PortError, SeedError, CallError, ParleyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def serve() -> int:
    """Starts everything, shows one request, and stays until Ctrl-C, which ends what was started."""
    with _turn():
        if running(ROOT):
            print("error: a stack runs here already; end it with `make down`", file=sys.stderr)
            return 1
        try:
            found, stack = _start()
        except BaseException:
            _end()
            raise
    try:
        print("\nServing. Ctrl-C ends it.", flush=True)
        _watch(found, stack)
    except KeyboardInterrupt:
        print("\nEnding.", flush=True)
    finally:
        if _is_ours():  # what `make down` ended, and `make up` may have begun anew, is somebody else's
            _end()
    return 0


def up() -> int:
    """The same, and returns with everything running; a failure leaves nothing behind."""
    with _turn():
        if running(ROOT) and ENV_FILE.exists():
            print(f"already up; {ENV_FILE} has the URLs and keys. What was set since counts after `make down`")
            return 0
        try:
            _start()
        except BaseException:
            _end()
            raise
    print("\nUp. `make down` ends it.")
    return 0


def down() -> int:
    with _turn():
        was_running = running(ROOT)
        _end()
    print("Ended." if was_running else "Nothing was running here.")
    return 0


def clean() -> int:
    """Ends it and forgets it: databases, queues, logs and secrets."""
    with _turn():
        _end()
        servers.down(ROOT, remove=True)
        for folder in ("logs", "run"):
            shutil.rmtree(ROOT / folder, ignore_errors=True)
        (ROOT / "secrets.json").unlink(missing_ok=True)
    print("Forgotten.")
    return 0


def _start() -> tuple[servers.Servers, Stack]:
    began = time.monotonic()
    base = env_file.without_own(os.environ)
    check_gateway_port(base)
    servers.reach_given(base)
    found = servers.up(ROOT, base)
    stack = Stack(ROOT, found.urls(), base)
    _say("migrating, then starting " + ", ".join(stack.processes))
    stop_all(ROOT)  # what is left of a stack that was not ended
    stack.start()
    account = make_account(stack, "local")
    env_file.write(ENV_FILE, ROOT, env_file.env_of(stack, account))
    OWNER_FILE.write_text(str(os.getpid()))
    _say(f"ready after {time.monotonic() - began:.1f} s")
    _show(stack, account)
    _print_addresses(stack)
    return found, stack


def _show(stack: Stack, account: Account) -> None:
    """With Stripe itself behind billing nobody can subscribe the account from here: its owner has to pay first."""
    if stack.has_standin(STRIPE):
        await_allow(stack, subscribe(stack, account))
    answer = eligibility(stack, account)
    print(f"GET /v1/eligibility -> {answer['decision']}")
    if answer["decision"] in ("ALLOW", "ALLOW_GRACE"):
        show_one_request(stack.url("gateway"), account)
    else:
        print("  no request is shown: the account has no subscription at Stripe yet (POST /v1/billing/checkout)")


def _print_addresses(stack: Stack) -> None:
    print(f"\n  API      {stack.url('gateway')}")
    print(f"  LLM      {'stand-in, control ' + stack.ops_url(LLM) if stack.has_standin(LLM) else 'yours'}")
    print(f"  Stripe   {'stand-in, control ' + stack.ops_url(STRIPE) if stack.has_standin(STRIPE) else 'yours'}")
    ops = ", ".join(f"{name} {stack.ops_url(name).rpartition(':')[2]}" for name in SERVICES)
    print(f"  ops      health and metrics on the ports {ops}")
    print(f"  env      . {ENV_FILE}\n  logs     {ROOT / 'logs'}", flush=True)


def _watch(found: servers.Servers, stack: Stack) -> None:
    """Reports each death once and goes on: what remains may be just what somebody wants to look at. Returns when
    somebody else has ended the stack."""
    reported: set[str] = set()
    private = {"PostgreSQL": found.postgres, "RabbitMQ": found.rabbitmq}
    while _is_ours():
        for name in sorted(set(stack.dead()) - reported):
            print(f"error: {stack.obituary(name)}", file=sys.stderr, flush=True)
            reported.add(name)
        for name, server in private.items():
            if server and name not in reported and not server.running():
                print(f"error: {name} has ended; see its log under {ROOT}", file=sys.stderr, flush=True)
                reported.add(name)
        time.sleep(WATCH_SECONDS)
    print("Ended by `make down`.", flush=True)


def _is_ours() -> bool:
    """Whether the stack of this checkout is the one that this process started."""
    return OWNER_FILE.exists() and OWNER_FILE.read_text() == str(os.getpid())


def _end() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave half of it running
    OWNER_FILE.unlink(missing_ok=True)  # first: who watches the stack must not take its end for deaths
    stop_all(ROOT)
    servers.down(ROOT)
    ENV_FILE.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def _turn() -> Iterator[None]:
    """Two commands in one checkout take turns."""
    ROOT.mkdir(exist_ok=True)
    with (ROOT / ".stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
