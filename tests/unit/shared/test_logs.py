"""Nothing secret passes the last step before rendering."""

import json

import pytest
from pydantic import BaseModel, ValidationError

from shared.errors import Unprocessable
from shared.logs import describe_exception, redact

CANARY = "canary-7261"


@pytest.mark.parametrize(
    "event",
    [
        {"authorization": f"Bearer {CANARY}"},
        {"api_key": CANARY},
        {"stripe_api_key": CANARY},
        {"service_token": CANARY},
        {"database_url": f"postgresql://u:{CANARY}@h/db"},
        {"input": CANARY},
        {"output": {"text": CANARY}},
        {"prompt": [CANARY]},
        {"note": f"called with Bearer {CANARY}"},
        {"note": f"key sk-{CANARY}{CANARY}"},
        {"note": f"pk_live_{CANARY.replace('-', '')}"},
        {"note": f"amqp://user:{CANARY}@broker:5672/"},
        {"detail": {"deep": [{"password": CANARY}]}},
        {"detail": {"content": CANARY}},
    ],
)
def test_secrets_and_content_are_taken_out(event: dict[str, object]) -> None:
    rendered = json.dumps(redact(None, "info", dict(event)), default=str)
    assert CANARY not in rendered
    assert CANARY.replace("-", "") not in rendered


def test_plain_fields_stay_as_they_are() -> None:
    event = {"event": "request.accepted", "request_id": "req_1", "seconds": 0.5, "ok": True, "nothing": None}
    assert redact(None, "info", dict(event)) == event


def test_a_long_value_is_cut() -> None:
    assert len(str(redact(None, "info", {"note": "x" * 10_000})["note"])) < 2100


class _Body(BaseModel):
    number: int


def test_an_exception_tells_its_type_and_place_but_not_what_others_put_into_its_words() -> None:
    try:
        try:
            _Body.model_validate({"number": CANARY})
        except ValidationError as error:
            raise Unprocessable("invalid_body: number") from error
    except Unprocessable as error:
        lines = describe_exception(error)
    assert lines[0] == "Unprocessable: invalid_body: number"
    assert any(line == "ValidationError" for line in lines)
    assert CANARY not in "\n".join(lines)
