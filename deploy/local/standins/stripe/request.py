"""What a resource function is given: the decoded parameters and where the request came from."""

from dataclasses import dataclass, field

from deploy.local.standins.stripe.form import Params


@dataclass(slots=True)
class Asked:
    params: Params = field(default_factory=dict)
    path: str = ""
    request_id: str | None = None
    base_url: str = ""
