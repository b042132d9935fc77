"""`python -m tests.chaos.run --seed S --minutes M`: a load, faults at random from the seed, and the counters after."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import time
from pathlib import Path

from tests.support.faults.load import Tempo
from tests.support.faults.monkey import Monkey
from tests.support.faults.report import Report
from tests.support.faults.trial import Trial, trial
from tests.support.faults.world import World

ROOTS = Path(__file__).parents[2] / ".local" / "chaos"
PROGRESS_SECONDS = 5.0
GAP_SECONDS_MAX = 2.0
MONKEYS = 2


def main() -> None:
    arguments = _parsed()
    root = ROOTS / str(arguments.seed)  # so that seeds may run side by side
    shutil.rmtree(root, ignore_errors=True)
    world = World(root)
    try:
        world.start()
        report = asyncio.run(_chaos(world, arguments.seed, arguments.minutes * 60, arguments.sessions))
    finally:
        world.stop()
    _say(str(report))
    _say(f"repeat with: make chaos SEED={arguments.seed} MINUTES={arguments.minutes:g}; logs are under {root}")
    sys.exit(1 if report.violations else 0)


async def _chaos(world: World, seed: int, seconds: float, sessions: int) -> Report:
    async with trial(world, "chaos", seed, tempo=Tempo(sessions=sessions, short_deadlines=0.05)) as running:
        ends_at = time.monotonic() + seconds
        busy: set[str] = set()
        progress = asyncio.create_task(_progress(running))
        # Two at a time, so that one fault also strikes while the system still recovers from another.
        await asyncio.gather(*(_break_things(running, f"{seed}:{number}", ends_at, busy) for number in range(MONKEYS)))
        await asyncio.to_thread(world.heal)
        report = await running.finish()
        progress.cancel()
    return report


async def _break_things(running: Trial, seed: str, ends_at: float, busy: set[str]) -> None:
    monkey = Monkey(running.world, seed, running.put_mix, busy=busy, say=_say_when)
    rng = random.Random(f"gaps:{seed}")
    while time.monotonic() < ends_at:
        await asyncio.sleep(rng.uniform(0, GAP_SECONDS_MAX))
        await monkey.once()


async def _progress(running: Trial) -> None:
    while True:
        load = running.load
        open_count = load.accepted - load.ended
        _say(f"{len(load.posts)} asked, {load.accepted} accepted, {load.ended} ended, {open_count} open")
        await asyncio.sleep(PROGRESS_SECONDS)


def _say_when(what: str) -> None:
    _say(f"  {time.strftime('%H:%M:%S')} {what}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Breaks a system at random while it works, and looks what broke.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--sessions", type=int, default=25, help="conversations at the same time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
