"""`make mutants`: break each promise by one line in a copy of the project, and see its test go red."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.servers import down, up

REPOSITORY = Path(__file__).parents[1]
LIST = REPOSITORY / "tests" / "mutants.toml"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".local", "__pycache__", ".*_cache", ".hypothesis")
PROMISES = [f"P{number}" for number in range(1, 13)]
TEST_SECONDS_MAX = 120
UNCHANGED_SECONDS_MAX = 1200
INTERRUPT_SECONDS_MAX = 60


@dataclass(frozen=True)
class Mutant:
    """One change that breaks one promise: `find` stands exactly once in `file`; each of `tests` must then fail."""

    name: str
    promise: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]


class MutantListError(Exception):
    """tests/mutants.toml does not fit the code any more."""


def read_list() -> list[Mutant]:
    entries = tomllib.loads(LIST.read_text())["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def check_list(mutants: Sequence[Mutant], folder: Path = REPOSITORY) -> None:
    """Every place is there exactly once, and every promise has at least two mutants."""
    if len({mutant.name for mutant in mutants}) < len(mutants):
        raise MutantListError("two mutants have the same name")
    for mutant in mutants:
        if (folder / mutant.file).read_text().count(mutant.find) != 1 or mutant.find == mutant.replace:
            raise MutantListError(f"{mutant.name}: its `find` does not stand exactly once in {mutant.file}")
    for promise in PROMISES:
        if sum(mutant.promise == promise for mutant in mutants) < 2:
            raise MutantListError(f"{promise} has fewer than two mutants")


def copy_of(folder: Path, into: Path) -> Path:
    shutil.copytree(folder, into, ignore=LEFT_OUT)
    (into / ".venv").symlink_to(REPOSITORY / ".venv")
    return into


def run_tests(
    folder: Path, tests: Sequence[str], environ: Mapping[str, str], *, seconds_max: float
) -> subprocess.CompletedProcess[str]:
    command = [str(REPOSITORY / ".venv/bin/python"), "-m", "pytest", "-q", "-x", *tests]
    with subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True) as pytest:
        try:
            stdout, _ = pytest.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            _interrupt(pytest)
            return subprocess.CompletedProcess(command, 1, "\nFAILED it ran out of time", "")
    return subprocess.CompletedProcess(command, pytest.returncode, stdout, "")


def _interrupt(pytest: subprocess.Popen[str]) -> None:
    """As Ctrl-C does: the servers and services that its fixtures have started end with it."""
    pytest.send_signal(signal.SIGINT)
    try:
        pytest.communicate(timeout=INTERRUPT_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        pytest.kill()


def check_unchanged(folder: Path, mutants: Sequence[Mutant], environ: Mapping[str, str]) -> None:
    """A red test says something about a change only where it is green without one."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    outcome = run_tests(folder, tests, environ, seconds_max=UNCHANGED_SECONDS_MAX)
    if outcome.returncode != 0:
        raise MutantListError(f"the tests do not pass on unchanged code:\n{outcome.stdout[-4000:]}")


def verdict_on(mutant: Mutant, base: Path, environ: Mapping[str, str]) -> str:
    """`caught` where each named test fails on the changed copy: a test that cannot even begin catches nothing."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as holder:
        folder = copy_of(base, Path(holder) / "parley")
        changed = folder / mutant.file
        changed.write_text(changed.read_text().replace(mutant.find, mutant.replace))
        for test in mutant.tests:
            outcome = run_tests(folder, [test], environ, seconds_max=TEST_SECONDS_MAX)
            if outcome.returncode == 0:
                return "SURVIVED"
            if outcome.returncode != 1 or "\nFAILED " not in outcome.stdout:
                return f"NO TEST ({outcome.stdout.strip().splitlines()[-1:]})"
    return "caught"


def run(mutants: Sequence[Mutant], base: Path, environ: Mapping[str, str], *, side_by_side: int) -> list[str]:
    """The names of those that no test caught."""

    def timed(mutant: Mutant) -> tuple[str, float]:
        began = time.monotonic()
        return verdict_on(mutant, base, environ), time.monotonic() - began

    escaped = []
    with ThreadPoolExecutor(side_by_side) as pool:
        for mutant, (verdict, seconds) in zip(mutants, pool.map(timed, mutants), strict=True):
            print(f"{mutant.promise:4} {verdict:8} {seconds:5.1f} s  {mutant.name}", flush=True)  # noqa: T201
            if verdict != "caught":
                escaped.append(mutant.name)
    return escaped


@contextmanager
def servers_root() -> Iterator[str]:
    """Those that PARLEY_TEST_SERVERS names, left running; without it, some of our own that end with us."""
    shared_root = os.environ.get("PARLEY_TEST_SERVERS")
    if shared_root:
        yield shared_root
        return
    with tempfile.TemporaryDirectory(prefix="mutant-servers-") as root:
        Path(root).chmod(0o755)
        up(Path(root), {})
        try:
            yield root
        finally:
            down(Path(root), remove=True)


def chosen_from(mutants: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    """Those named by their name or by their promise; all where nothing is named."""
    unknown = set(names) - {mutant.name for mutant in mutants} - set(PROMISES)
    if unknown:
        raise MutantListError(f"there is no mutant named {', '.join(sorted(unknown))}")
    return [mutant for mutant in mutants if not names or {mutant.name, mutant.promise} & set(names)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these mutants, or those of these promises (P3)")
    parser.add_argument("--side-by-side", type=int, default=2)
    arguments = parser.parse_args()
    mutants = read_list()
    chosen = chosen_from(mutants, arguments.names)
    with tempfile.TemporaryDirectory(prefix="mutant-base-") as holder, servers_root() as root:
        # One copy that all mutants are made of, so that somebody may go on editing meanwhile.
        base = copy_of(REPOSITORY, Path(holder) / "parley")
        check_list(mutants, base)
        environ = {**os.environ, "PARLEY_TEST_SERVERS": root}
        check_unchanged(base, chosen, environ)
        escaped = run(chosen, base, environ, side_by_side=arguments.side_by_side)
    print(f"{len(chosen) - len(escaped)} of {len(chosen)} caught")  # noqa: T201
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
