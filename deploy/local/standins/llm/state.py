"""Everything one provider process remembers; the control port can put all of it back to the start."""

from deploy.local.standins.gates import Gates
from deploy.local.standins.llm.behaviour import Behaviour
from deploy.local.standins.llm.call import Call
from deploy.local.standins.llm.call_log import CallLog
from deploy.local.standins.llm.limits import Limits
from deploy.local.standins.llm.script import CallMatch, Script

MODELS = ("standin-1", "standin-1-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4o-mini")


class State:
    def __init__(self, seed: int, first_byte_ms: float, log_calls_max: int) -> None:
        self.seed = seed
        self._default = Behaviour(first_byte_ms=first_byte_ms)
        self.log = CallLog(log_calls_max)
        self.gates: Gates[Call] = Gates(CallMatch, self.log.held)
        self._start()

    def _start(self) -> None:
        self.script = Script()
        self.script.default = self._default
        self.limits = Limits()
        self.keys: frozenset[str] | None = None  # None accepts any key that is not empty
        self.models: tuple[str, ...] = MODELS
        self.models_checked = False

    def reset(self) -> None:
        self._start()
        self.gates.open_all()
        self.log.clear()
