"""Which tests xdist gives to one worker together, and in which order: the longest first, so that none ends late."""

from __future__ import annotations

from typing import Final

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling  # type: ignore[import-untyped]

LONGEST_FIRST: Final = (
    # Of four workers two mostly wait here, and two use the processors.
    "tests/chaos/test_outage.py",
    "tests/chaos/test_sweepers.py",
    "tests/chaos/test_drain.py",
    "tests/chaos/test_order.py",
    "tests/chaos/test_faults.py",
    "tests/chaos/test_clocks.py",
    "tests/promises/",
    "tests/component/orchestrator/",
    "tests/e2e/",
    "tests/component/gateway/",
    "tests/component/billing/",
    "tests/integration/",
)
SHARE_A_STACK: Final = (("tests/e2e/", "tests/integration/test_local_stack.py"), ("tests/promises/",))
"""A stack takes seconds to start and to end: whose fixture is the same stays with one worker."""


def place(nodeid: str) -> int:
    """Of a test's file among all."""
    return next((place for place, part in enumerate(LONGEST_FIRST) if nodeid.startswith(part)), len(LONGEST_FIRST))


class ByStack(LoadScopeScheduling):  # type: ignore[misc]
    """A file is one piece of work, and so are all files that share a stack."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # by the count of tests, which says nothing about their time

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((together[0] for together in SHARE_A_STACK if file.startswith(together)), file)
