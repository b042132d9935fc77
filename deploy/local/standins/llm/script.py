"""Which behaviour a call gets: the first rule that matches, else a draw of the seeded mix, else the default."""

import random
from collections import Counter
from dataclasses import dataclass, field

from deploy.local.standins.control import ControlError
from deploy.local.standins.llm.behaviour import DEFAULT, Behaviour
from deploy.local.standins.llm.call import Call, messages_text
from deploy.local.standins.rules import Match, Rules

MIX_KEYS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class CallMatch:
    """Every field given must hold. `header` maps a name to a text its value contains; `*` asks only for presence."""

    marker: str | None = None
    text: str | None = None
    transcript: str | None = None
    model: str | None = None
    stream: bool | None = None
    header: dict[str, str] = field(default_factory=dict)

    def holds(self, call: Call) -> bool:
        return (
            (self.marker is None or call.marker == self.marker)
            and (self.text is None or self.text in call.last_user_text)
            and (self.model is None or call.body.get("model") == self.model)
            and (self.stream is None or bool(call.body.get("stream")) == self.stream)
            and all(self._in_header(call, name.lower(), part) for name, part in self.header.items())
            and (self.transcript is None or self.transcript in messages_text(call.body))
        )

    @staticmethod
    def _in_header(call: Call, name: str, part: str) -> bool:
        value = call.headers.get(name)
        return value is not None and (part == "*" or part in value)


class Mix:
    """Random faults that replay: a draw depends on seed, key and count of the call, not on the order of calls."""

    def __init__(self, seed: int, faults: list[tuple[float, Behaviour]]) -> None:
        if any(p < 0 for p, _ in faults) or sum(p for p, _ in faults) > 1 + 1e-9:
            raise ControlError("the probabilities must not be negative and add up to at most 1")
        self._seed = seed
        self._faults = faults
        self._count_of_key: Counter[str] = Counter()

    def draw(self, call: Call) -> Behaviour | None:
        if len(self._count_of_key) >= MIX_KEYS_MAX:
            self._count_of_key.clear()
        self._count_of_key[call.key] += 1
        point = random.Random(f"{self._seed}:{call.key}:{self._count_of_key[call.key]}").random()
        for probability, behaviour in self._faults:
            if point < probability:
                return behaviour
            point -= probability
        return None


def _marker(of: Call | Match[Call]) -> str | None:
    return of.marker if isinstance(of, (Call, CallMatch)) else None


class Script:
    def __init__(self) -> None:
        self.default = DEFAULT
        self.mix: Mix | None = None
        # Found by marker, so that ten thousand scripted cases do not slow each call.
        self.rules: Rules[Call, Behaviour] = Rules(CallMatch, Behaviour, _marker)

    def behaviour_for(self, call: Call) -> Behaviour:
        taken = self.rules.take(call)
        if taken is not None:
            call.rule, behaviour = taken
            return behaviour
        return (self.mix and self.mix.draw(call)) or self.default
