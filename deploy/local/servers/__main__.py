"""`python -m deploy.local.servers up|down --root DIR`: prints the URLs as shell exports, progress goes to stderr."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from deploy.local.servers.find import ServersError, down, up


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy.local.servers", description=__doc__)
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--root", type=Path, default=Path(".local"), help="folder of the private instances")
    arguments = parser.parse_args()
    try:
        if arguments.action == "down":
            down(arguments.root)
            return 0
        for name, value in up(arguments.root, os.environ).urls().items():
            print(f"export {name}={shlex.quote(value)}")
    except ServersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
