"""Where a private instance keeps its data: under the root folder, or under /var/tmp where its user cannot go there."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from deploy.local.daemon import DaemonError, User, run_as


def home(root: Path, name: str, user: User | None) -> Path:
    """The folder `root/name`, owned and reachable by the user; a symbolic link where the data lives elsewhere."""
    folder = root.resolve() / name
    if folder.is_symlink() and not folder.exists():
        folder.unlink()
    if not folder.exists():
        _make(folder, user)
    return folder.resolve()


def remove_home(root: Path, name: str) -> None:
    folder = root.resolve() / name
    if folder.is_symlink():
        shutil.rmtree(folder.resolve(), ignore_errors=True)
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _make(folder: Path, user: User | None) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    if user is None or _usable(folder, user):
        return
    folder.rmdir()
    elsewhere = _elsewhere(folder)
    if not _usable(elsewhere, user):
        raise DaemonError(f"user {user.name} can write neither {folder} nor {elsewhere}; choose another --root")
    folder.symlink_to(elsewhere)


def _usable(folder: Path, user: User) -> bool:
    """Tried and not computed: the answer depends on every folder above, on access lists and on how it is mounted."""
    with contextlib.suppress(PermissionError):
        os.chown(folder, user.uid, user.gid)
    probe = 'cd "$1" && touch .probe && rm .probe'
    answer = subprocess.run(
        ["/bin/sh", "-c", probe, "sh", str(folder)],
        cwd="/",
        capture_output=True,
        check=False,
        **run_as(user),
    )
    return answer.returncode == 0


def _elsewhere(folder: Path) -> Path:
    """Named after the folder it stands for, so that two checkouts never meet."""
    base = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path(tempfile.gettempdir())
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    elsewhere = base / f"parley-{folder.name}-{digest}"
    if elsewhere.exists():
        # Left by a checkout that was deleted and made anew under the same path: nothing refers to this data any more.
        shutil.rmtree(elsewhere)
    elsewhere.mkdir(mode=0o700)
    return elsewhere
