"""Installs the servers' programs on Debian and Ubuntu, without letting the packages start servers of their own."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.local.daemon import DaemonError

POLICY = Path("/usr/sbin/policy-rc.d")
CLUSTER_CONFIGURATION = Path("/etc/postgresql-common/createcluster.conf")
# 101 is "this action is not allowed": invoke-rc.d then leaves the service alone.
DENY_STARTS = "#!/bin/sh\nexit 101\n"


def usable() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: Sequence[str]) -> None:
    with _put(POLICY, DENY_STARTS, 0o755), _put(CLUSTER_CONFIGURATION, "create_main_cluster = false\n", 0o644):
        _apt_get("update")
        # The file above is the package's own configuration file: without this option dpkg would ask which to keep.
        _apt_get("install", "--yes", "--no-install-recommends", "--option=Dpkg::Options::=--force-confold", *packages)


def _apt_get(*words: str) -> None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    answer = subprocess.run(["apt-get", *words], env=environ, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise DaemonError(f"apt-get {words[0]} failed: {(answer.stderr or answer.stdout).strip()[-2000:]}")


@contextmanager
def _put(path: Path, content: str, mode: int) -> Iterator[None]:
    """The file has this content within the block, and afterwards the one it had."""
    before = (path.read_bytes(), path.stat().st_mode & 0o7777) if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    try:
        yield
    finally:
        path.unlink()
        if before:
            path.write_bytes(before[0])
            path.chmod(before[1])
