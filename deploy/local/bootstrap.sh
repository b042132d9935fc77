#!/bin/sh
# Makes .venv from the lock file; arguments go to `uv sync`. uv comes from the PATH, else from pipx, else from a virtual environment of its own:
# pip may not install into the system's Python on Debian and others (PEP 668).
set -eu
cd "$(dirname "$0")/../.."
tools=$PWD/.local/uv

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

try_uv() {  # a version manager's shim may stand on the PATH and have nothing behind it: only an answer counts
    "$1" --version >/dev/null 2>&1 && uv=$1
}

from_pipx() {
    pipx --version >/dev/null 2>&1 || return 1
    echo '  uv: from pipx' >&2
    PIPX_HOME="$tools/pipx" PIPX_BIN_DIR="$tools/bin" pipx install --quiet uv >&2 && try_uv "$tools/bin/uv"
}

from_venv() {
    python3 -m venv --help >/dev/null 2>&1 || fail "there is no python3; install Python 3.11 or newer, or uv"
    echo "  uv: into $tools" >&2
    rm -rf "$tools"
    if ! python3 -m venv "$tools" >/dev/null 2>&1; then
        rm -rf "$tools"
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo '  apt-get install python3-venv' >&2
            { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv; } \
                >"$PWD/.local/apt.log" 2>&1 || fail "apt-get could not install python3-venv; see .local/apt.log"
            python3 -m venv "$tools" >/dev/null
        else
            fail "python3 cannot make a virtual environment. Install one of: python3-venv (apt-get install python3-venv), pipx, uv"
        fi
    fi
    "$tools/bin/python" -m pip install --quiet uv >&2 && try_uv "$tools/bin/uv"
}

mkdir -p .local
try_uv uv || try_uv "$tools/bin/uv" || from_pipx || from_venv || fail "uv could not be installed; see https://docs.astral.sh/uv"

if ! "$uv" python find --quiet --no-python-downloads '>=3.11' >/dev/null 2>&1; then
    echo '  Python 3.11 or newer is not installed: uv downloads one' >&2
    "$uv" python install --quiet 3.12 || fail "Parley needs Python 3.11 or newer; this machine has $(python3 --version 2>&1)"
fi
"$uv" sync --locked --quiet "$@"
