"""The body that sends a turn: input, tools, the form of the answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, TypeAdapter, field_validator
from pydantic_core import to_json

from services.gateway.schemas.base import TEXT_LENGTH_MAX, Incoming, JsonObject, Metadata, ModelName, Text, ToolName
from shared.contracts.content import FunctionCallOutputItem, Item, MessageItem

DEADLINE_SECONDS_MAX: Final = 86_400
OUTPUT_TOKENS_MAX: Final = 1_000_000
ITEMS_MAX: Final = 1_000
TOOLS_MAX: Final = 128

_ITEMS: Final = TypeAdapter(tuple[Item, ...])


class UserMessage(Incoming):
    """What the user says. Instructions belong to the session, the model's turns come from the transcript."""

    type: Literal["message"] = "message"
    role: Literal["user"]
    content: Text


class FunctionCallOutput(Incoming):
    """The caller's answer to a function call of the turn before."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=128)
    output: str = Field(max_length=TEXT_LENGTH_MAX)


def _item_type(value: object) -> object:
    if isinstance(value, dict):
        return value.get("type", "message")
    return getattr(value, "type", None)


InputItem: TypeAlias = Annotated[
    Annotated[UserMessage, Tag("message")] | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(_item_type),
]
InputItems: TypeAlias = Annotated[tuple[InputItem, ...], Field(min_length=1, max_length=ITEMS_MAX, strict=False)]


def _input_form(value: object) -> str | None:
    """So that only the problems of the form that was meant are told."""
    return "text" if isinstance(value, str) else "items" if isinstance(value, list | tuple) else None


Input: TypeAlias = Annotated[
    Annotated[Text, Tag("text")] | Annotated[InputItems, Tag("items")], Discriminator(_input_form)
]


class Function(Incoming):
    """A function that the model may ask the caller to run."""

    name: ToolName
    description: str | None = Field(default=None, max_length=8_192)
    parameters: JsonObject = Field(default_factory=dict)
    strict: bool | None = None


class Tool(Function):
    """A function, in the flat form of OpenAI's Responses API."""

    type: Literal["function"]


class NestedTool(Incoming):
    """The same in the form of OpenAI's Chat Completions API."""

    type: Literal["function"]
    function: Function


class TextFormat(Incoming):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Incoming):
    """Some JSON object."""

    type: Literal["json_object"]


class NamedSchema(Incoming):
    """A JSON schema. An answer that is not valid under it fails or is repaired."""

    name: ToolName = "answer"
    json_schema: JsonObject = Field(alias="schema")
    strict: bool = True


class JsonSchemaFormat(NamedSchema):
    """A JSON value that is valid under `schema`."""

    type: Literal["json_schema"]


class NestedJsonSchemaFormat(Incoming):
    """The same in the form of OpenAI's Chat Completions API."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


def _tool_form(value: object) -> str:
    is_nested = "function" in value if isinstance(value, dict) else isinstance(value, NestedTool)
    return "nested" if is_nested else "flat"


def _format_form(value: object) -> object:
    if isinstance(value, NestedJsonSchemaFormat) or (isinstance(value, dict) and "json_schema" in value):
        return "nested_json_schema"
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


AnyTool: TypeAlias = Annotated[
    Annotated[Tool, Tag("flat")] | Annotated[NestedTool, Tag("nested")], Discriminator(_tool_form)
]
ResponseFormat: TypeAlias = Annotated[
    Annotated[TextFormat, Tag("text")]
    | Annotated[JsonObjectFormat, Tag("json_object")]
    | Annotated[JsonSchemaFormat, Tag("json_schema")]
    | Annotated[NestedJsonSchemaFormat, Tag("nested_json_schema")],
    Discriminator(_format_form),
]


class CreateRequest(Incoming):
    """One turn of a conversation."""

    input: Input
    model: ModelName | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=OUTPUT_TOKENS_MAX)
    temperature: float | None = Field(default=None, ge=0, le=2)
    response_format: ResponseFormat | None = None
    tools: tuple[AnyTool, ...] = Field(default=(), max_length=TOOLS_MAX, strict=False)
    deadline_seconds: int | None = Field(default=None, ge=1, le=DEADLINE_SECONDS_MAX)
    metadata: Metadata = Field(default_factory=dict)

    @field_validator("tools")
    @classmethod
    def _name_each_tool_once(cls, tools: tuple[AnyTool, ...]) -> tuple[AnyTool, ...]:
        if len({function.name for function in _functions(tools)}) < len(tools):
            raise ValueError("two tools have the same name")
        return tools

    def items(self) -> tuple[Item, ...]:
        """The input as the other services word it."""
        if isinstance(self.input, str):
            return (MessageItem(role="user", content=self.input),)
        return tuple(_to_contract(item) for item in self.input)

    def items_json(self) -> str:
        return _ITEMS.dump_json(self.items()).decode()

    def metadata_json(self) -> str:
        return to_json(self.metadata).decode()

    def settings_json(self) -> str:
        """The part of CallSettings that this body says; tools and formats in their flat form."""
        said = self.model_dump(include={"max_output_tokens", "temperature"}, exclude_none=True)
        if self.tools:
            functions = [tool.model_dump(exclude={"type"}, exclude_none=True) for tool in _functions(self.tools)]
            said["tools"] = [{"type": "function", **function} for function in functions]
        if isinstance(self.response_format, NestedJsonSchemaFormat):
            named_schema = self.response_format.json_schema.model_dump(by_alias=True)
            said["response_format"] = {"type": "json_schema", **named_schema}
        elif self.response_format is not None:
            said["response_format"] = self.response_format.model_dump(by_alias=True)
        return to_json(said).decode()

    def text_bytes(self) -> int:
        """The size of all text in the input, in UTF-8."""
        if isinstance(self.input, str):
            return len(self.input.encode())
        texts = (item.content if isinstance(item, UserMessage) else item.output for item in self.input)
        return sum(len(text.encode()) for text in texts)


def _functions(tools: Iterable[AnyTool]) -> list[Function]:
    return [tool.function if isinstance(tool, NestedTool) else tool for tool in tools]


def _to_contract(item: UserMessage | FunctionCallOutput) -> Item:
    if isinstance(item, UserMessage):
        return MessageItem(role=item.role, content=item.content)
    return FunctionCallOutputItem(call_id=item.call_id, output=item.output)
