"""`python -m bench.ungrouped SERVICE ...`: a service whose group commit is off: each item is a flush of its own."""

import asyncio
import runpy
import sys
from typing import Any

from shared.group_commit import GroupCommit


def _alone(self: GroupCommit[Any, Any], item: Any) -> asyncio.Future[Any]:
    return asyncio.ensure_future(_flushed(self, item))


async def _flushed(group: GroupCommit[Any, Any], item: Any) -> Any:
    (result,) = await group._flush([item])
    return result


if __name__ == "__main__":
    GroupCommit.submit = _alone  # type: ignore[method-assign]
    service = sys.argv.pop(1)
    runpy.run_module(f"services.{service}", run_name="__main__", alter_sys=True)
