"""The secrets of a local stack: made once per root folder, so that keys given out stay good over restarts."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Secrets:
    service_token: str
    api_key_pepper: str
    stripe_api_key: str
    stripe_webhook_secret: str


def load_or_make(root: Path) -> Secrets:
    file = root / "secrets.json"
    if file.exists():
        return Secrets(**json.loads(file.read_text()))
    made = Secrets(
        service_token=secrets.token_urlsafe(32),
        api_key_pepper=secrets.token_urlsafe(32),
        stripe_api_key=f"sk_test_{secrets.token_hex(16)}",
        stripe_webhook_secret=f"whsec_{secrets.token_hex(16)}",
    )
    root.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(json.dumps(asdict(made)))
    return made
