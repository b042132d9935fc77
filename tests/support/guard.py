"""How long a test waits for what should come at once, before it calls it lost."""

from typing import Final

GUARD_SECONDS: Final = 60.0
"""Far more than anything here takes: on a loaded machine a shorter wait tells of the load, not of the product."""
