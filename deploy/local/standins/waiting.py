"""Long polls on counters: a test awaits `calls >= 3` instead of sleeping."""

import asyncio
import operator
import re
from collections.abc import Callable, Mapping

from deploy.local.standins.control import ControlError

_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([a-z_]+)\s*(>=|<=|==|>|<)\s*(\d+)\s*")

Counters = Callable[[], Mapping[str, int]]


def condition(text: str, counters: Counters) -> Callable[[], bool]:
    """Turn `in_flight >= 3` into a test of the live counters."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ControlError(f"condition {text!r} is not of the form `counter >= number`")
    name, comparison, number = found[1], _COMPARISONS[found[2]], int(found[3])
    if name not in counters():
        raise ControlError(f"no counter {name!r}; there are {', '.join(counters())}")
    return lambda: comparison(counters()[name], number)


class Watch:
    """Wakes the waiters whose condition became true; costs nothing while nobody waits."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}

    def changed(self) -> None:
        if not self._waiting:
            return
        for future, holds in list(self._waiting.items()):
            # Judged at the moment of the change, so a condition that held only for an instant still wakes its waiter.
            if not future.done() and holds():
                future.set_result(None)

    async def until(self, holds: Callable[[], bool], timeout_seconds: float) -> bool:
        if holds():
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = holds
        try:
            await asyncio.wait_for(future, timeout_seconds)
        except TimeoutError:
            return False
        finally:
            del self._waiting[future]
        return True
