"""What a provider is to the rest of the service: one call, its deltas, an answer or a failure of a known kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from services.orchestrator.progress import DeltaType
from services.orchestrator.prompt import Prompt
from services.orchestrator.routing import Deployment
from services.orchestrator.task import FailureKind
from shared.contracts.content import Output, Usage
from shared.errors import ParleyError

OnDelta = Callable[[DeltaType, str], None]

_CODE = re.compile(r"^[A-Za-z0-9_.:-]{1,64}$")
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One provider call."""

    deployment: Deployment
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model gave. `cut_by` names what ended it early; the output is then a part."""

    output: Output
    usage: Usage | None
    """None where the provider did not say."""
    cut_by: Literal["max_output_tokens", "content_filter"] | None
    http_status: int
    first_token_seconds: float | None


class ProviderFailed(ParleyError):
    """The call gave no answer. `billable`: the provider may have worked, so its tokens are not given back."""

    def __init__(
        self,
        kind: FailureKind,
        *,
        http_status: int | None = None,
        error_code: str | None = None,
        retry_after_seconds: float | None = None,
        first_token_seconds: float | None = None,
        billable: bool = True,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(kind)
        self.kind: FailureKind = kind
        self.http_status = http_status
        # Codes are shown to users: whatever does not look like one may be text of any origin.
        self.error_code = error_code if error_code is not None and _CODE.match(error_code) else None
        self.retry_after_seconds = retry_after_seconds
        self.first_token_seconds = first_token_seconds
        self.billable = billable
        self.usage = usage


class Provider(Protocol):
    """`on_delta` gets each piece of text as it arrives. Cancelling the call ends it at the provider too."""

    async def call(self, request: CallRequest, on_delta: OnDelta) -> Answer: ...


def clean(text: str) -> str:
    """Text from outside, without what PostgreSQL or UTF-8 cannot hold."""
    return _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)
