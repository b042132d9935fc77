"""`python -m bench.ungrouped SERVICE ...`: a service whose group commit is off: each item is a flush of its own."""

import runpy
import sys
from typing import Any

from shared.group_commit import GroupCommit


async def _alone(self: GroupCommit[Any, Any], item: Any) -> Any:
    (result,) = await self._flush([item])
    return result


if __name__ == "__main__":
    GroupCommit.submit = _alone  # type: ignore[method-assign]
    service = sys.argv.pop(1)
    runpy.run_module(f"services.{service}", run_name="__main__", alter_sys=True)
