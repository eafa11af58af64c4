"""The messages of a record, in the fields that Alpaca's, OpenAI's and ShareGPT's formats have."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_lightning.backbones.chat_template import Message
from lora_lightning.datamodules.record_columns import columns_hint
from lora_lightning.datamodules.records import Record, decoded, text_field
from lora_lightning.errors import DataError

FIELDS = "give every record instruction and output, or messages with role and content"
PROMPT_FIELDS = "give every record instruction (or prompt), or messages with role and content"
MESSAGE_FIELDS = (
    "give every message role and content, or name its fields, such as --data.columns '{role: speaker, content: text}'"
)

CHATS = ("messages", "conversations")
CHAT_FIELDS = {"system", "tools", "functions"}
INSTRUCTION_FIELDS = CHAT_FIELDS | {"input", "history"}
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Names for the same thing in different formats; a record or message has one of them.
SYNONYMS = (("tools", "functions"), ("content", "value"), ("tool_calls", "function_call"), REASONING_FIELDS)
MESSAGE_FIELDS_READ = {
    *("role", "content", "from", "value", "name", "weight", "train", "tool_calls", "function_call", "tool_call_id"),
    *REASONING_FIELDS,
}
ROLES_OF_A_PAIR = ("user", "assistant")
NAMES_OF_ASSISTANT = {"gpt", "model", "bot", "chatgpt", "ai", "bing", "bard"}  # in the data of other programs
SHAREGPT_ROLES = {"gpt": "assistant", "function_call": "assistant", "observation": "tool"}
ROLE_AND_CONTENT = ("role", "content")
KNOWN_ROLES = {"system", "developer", "user", "assistant", "tool"}


@dataclass(frozen=True)
class Example:
    """An instruction with or without its response, or a chat.

    Attributes:
        where: File and line, for messages.
        messages: Each with `role` and `content`, perhaps `reasoning_content`, `tool_calls` and others.
        context: What the instruction works on; empty if there is nothing, and in a chat.
        tools: JSON schemas of the functions that the assistant may call.
        learnt_messages: Indices of the responses to learn, in order.
        unread: Names of the record's fields that nothing reads, those of messages as `messages.<name>`.
    """

    where: str = field(compare=False)
    messages: list[Message]
    context: str = ""
    tools: list[dict[str, Any]] | None = None
    learnt_messages: tuple[int, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def is_chat(self) -> bool:
        """Whether this is more than one instruction with or without its response."""
        return bool(self.tools) or [message["role"] for message in self.messages] not in (
            ["user"],
            ["user", "assistant"],
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """What is said, by which equal examples are found."""
        said = [f"{message['role']}: {message['content']}" for message in self.messages]
        more = [{name: message[name] for name in message if name not in ROLE_AND_CONTENT} for message in self.messages]
        return (*said, json.dumps(more), self.context)

    @property
    def chat(self) -> list[Message]:
        """The messages, the context after the instruction and an empty line."""
        if not self.context:
            return self.messages
        last = max(number for number, message in enumerate(self.messages) if message["role"] == "user")
        return [
            {**message, "content": f"{message['content']}\n\n{self.context}"} if number == last else message
            for number, message in enumerate(self.messages)
        ]


def parse_example(record: Record) -> Example:
    """Reads a record with `messages`, with `conversations`, or with `instruction`, `input` and `output`.

    `input` may be empty or missing. Every kind may have `system`, `tools` and (an instruction) `history`.

    Args:
        record: From a file or the hub.

    Returns:
        The example. It has no `learnt_messages` if every response says `weight: 0` or `train: false`.

    Raises:
        DataError: If a field is missing, empty or of another kind, or there is no response.
    """
    if (field := _chat_field(record)) is not None:
        messages, learnt, unread = _parse_chat(record, field)
        if not any(message["role"] == "assistant" for message in messages):
            roles = ", ".join(message["role"] for message in messages)
            msg = (
                f"{record.where}: no message has the role assistant (they have {roles}), so there is nothing to learn."
            )
            raise DataError(msg)
        return _example(record, messages, learnt, unread)
    remedy = f"{FIELDS}, {columns_hint(record)}"
    instruction, response = (text_field(record, name, remedy=remedy) for name in ("instruction", "output"))
    question: Message = {"role": "user", "content": instruction}
    turns = [*_history(record), question, {"role": "assistant", "content": response}]
    learnt = [number for number, message in enumerate(turns) if message["role"] == "assistant"]
    return _example(
        record, turns, learnt, _unread(record, {"instruction", "output", *INSTRUCTION_FIELDS}), _context(record)
    )


def parse_prompt(prompt: str | Record) -> Example:
    """Reads something to respond to.

    Args:
        prompt: An instruction, or a record with `messages`, `conversations`, `instruction` or `prompt`. A response at
            its end is left out: it is what a prediction is compared with.

    Returns:
        An example without its response.

    Raises:
        DataError: If a field is missing, empty or of another kind.
    """
    if isinstance(prompt, str):
        return Example("", [{"role": "user", "content": prompt}])
    if (field := _chat_field(prompt)) is not None:
        messages, _, unread = _parse_chat(prompt, field)
        if messages[-1]["role"] == "assistant":  # what is asked for, like the output of an instruction
            messages, unread = messages[:-1], [*unread, f"the response at the end of {field}"]
        if not messages:
            msg = f"{prompt.where}: {field} has a response only, and nothing to respond to; add the user's message."
            raise DataError(msg)
        return _example(prompt, messages, [], unread)
    name = "prompt" if "prompt" in prompt.fields and "instruction" not in prompt.fields else "instruction"
    question = {"role": "user", "content": text_field(prompt, name, remedy=f"{PROMPT_FIELDS}, {columns_hint(prompt)}")}
    unread = _unread(prompt, {name, "output", *INSTRUCTION_FIELDS})
    return _example(prompt, [*_history(prompt), question], [], unread, _context(prompt))


def has_empty_response(record: Record) -> bool:
    """Whether the output, or a message of the assistant, is there but says nothing."""
    field = _chat_field(record)
    if field is None:
        return _is_blank(record.fields.get("output", "x"))
    turns = decoded(record.fields[field])
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    said = [turn for turn in turns if _plain_role(turn.get("role", turn.get("from"))) in ("assistant", "gpt")]
    return any(
        _is_blank(turn.get("content", turn.get("value", "x")))
        and not (turn.get("tool_calls") or turn.get("function_call"))
        for turn in said
    )


def lacks_output(record: Record) -> bool:
    """Whether an instruction has no output, or null, which readers of records leave out."""
    return _chat_field(record) is None and "output" not in record.fields


def _is_blank(value: Any) -> bool:
    if isinstance(value, list):  # of parts
        return all(isinstance(part, dict) and _is_blank(part.get("text", "x")) for part in value)
    return value is None or (isinstance(value, str) and not value.strip())


def _chat_field(record: Record) -> str | None:
    return next((name for name in CHATS if name in record.fields), None)


def _example(
    record: Record, messages: list[Message], learnt: Sequence[int], unread: Sequence[str], context: str = ""
) -> Example:
    system = record.fields.get("system")
    if not _is_blank(system):
        if messages[0]["role"] == "system":
            msg = f"{record.where}: there is a field 'system' and a system message; keep one of them."
            raise DataError(msg)
        messages = [{"role": "system", "content": text_field(record, "system")}, *messages]
        learnt = [number + 1 for number in learnt]
    return Example(record.where, messages, context, _tools(record), tuple(learnt), tuple(unread))


def _unread(record: Record, read: set[str]) -> list[str]:
    return sorted(name for name, value in record.fields.items() if name not in read and value not in ("", [], {}))


def _context(record: Record) -> str:
    return text_field(record, "input", may_be_empty=True) if record.fields.get("input") is not None else ""


def _history(record: Record) -> list[Message]:
    pairs = decoded(record.fields.get("history") or [])
    turns: list[Message] = []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        texts = pair if isinstance(pair, list) else []
        if len(texts) != len(ROLES_OF_A_PAIR) or not all(isinstance(text, str) and text.strip() for text in texts):
            msg = f"{record.where}: history must be a list of pairs of instruction and response, and has {pair!r:.60}."
            raise DataError(msg)
        turns += [{"role": role, "content": text} for role, text in zip(ROLES_OF_A_PAIR, texts, strict=True)]
    return turns


def _parse_chat(record: Record, field: str) -> tuple[list[Message], list[int], list[str]]:
    """The messages, which of them are learnt, and the fields that nothing reads."""
    turns = decoded(record.fields[field])
    if not isinstance(turns, list) or not turns:
        msg = f"{record.where}: {field} must be a list of objects with role and content, and it is {turns!r:.60}."
        raise DataError(msg)
    rows = [
        Record(
            f"{record.where}, message {number}",
            {name: value for name, value in turn.items() if value is not None} if isinstance(turn, dict) else {},
        )
        for number, turn in enumerate(turns, start=1)
    ]
    unread = _unread(record, {field, *CHAT_FIELDS})
    unread += sorted({f"messages.{name}" for row in rows for name in _unread(row, MESSAGE_FIELDS_READ)})
    messages = [_parse_message(row) for row in rows]
    unread += sorted(
        {
            f"messages.{name} of the role {message['role']}"
            for message, row in zip(messages, rows, strict=True)
            for name in ("weight", "train")
            if message["role"] != "assistant" and row.fields.get(name)
        }
    )
    learnt = [
        number
        for number, (message, row) in enumerate(zip(messages, rows, strict=True))
        if message["role"] == "assistant" and all(_is_on(row, name) for name in ("weight", "train"))
    ]
    return messages, learnt, unread


def _is_on(message: Record, name: str) -> bool:
    value = message.fields.get(name, 1)
    if value not in (0, 1):
        msg = (
            f"{message.where}: {name} is {value!r:.60}, but it must be 0 or false (not learnt), or 1 or true (learnt)."
        )
        raise DataError(msg)
    return bool(value)


def _check_named_once(record: Record) -> None:
    """Refuses two fields that mean the same and differ, of which one would be lost."""
    for names in SYNONYMS:
        given = [name for name in names if record.fields.get(name) not in (None, "", [], {})]
        if len({json.dumps(record.fields[name], sort_keys=True, default=str) for name in given}) > 1:
            msg = f"{record.where}: the fields {' and '.join(given)} mean the same and differ; keep one of them."
            raise DataError(msg)


def _parse_message(row: Record) -> Message:
    _check_named_once(row)
    sharegpt = "role" not in row.fields and "from" in row.fields
    given = text_field(row, "from" if sharegpt else "role", remedy=MESSAGE_FIELDS)
    role = _plain_role(given)
    said = "value" if sharegpt else "content"
    called = sharegpt and role == "function_call"
    calls = _tool_calls(row, decoded(row.fields[said]) if called and said in row.fields else None)
    message: Message = {"role": SHAREGPT_ROLES.get(role, role) if sharegpt else role, "content": ""}
    if message["role"] in NAMES_OF_ASSISTANT:
        msg = f"{row.where}: the role {given!r} is not learnt, only that of 'assistant' is; rename it."
        raise DataError(msg)
    if not called and not (calls and _is_blank(row.fields.get(said))):
        plain = Record(row.where, {**row.fields, **({said: _joined(row, said)} if said in row.fields else {})})
        message["content"] = text_field(plain, said, may_be_empty=message["role"] == "tool", remedy=MESSAGE_FIELDS)
    if calls:
        message["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        if not _is_blank(row.fields.get(name)):
            message[name] = text_field(row, name)
    for name in REASONING_FIELDS:
        if not _is_blank(row.fields.get(name)):
            message["reasoning_content"] = text_field(row, name)
    return message


def _plain_role(role: Any) -> Any:
    """The role in the usual letters, and `human` as `user`, since files mix both; other roles as they are."""
    if not isinstance(role, str):  # refused where the message is read
        return role
    plain = role.strip().lower()
    if plain == "human":
        return "user"
    return plain if plain in KNOWN_ROLES | NAMES_OF_ASSISTANT | SHAREGPT_ROLES.keys() else role


def _joined(row: Record, field: str) -> Any:
    """A content that is a list of texts, as one text; anything else as it is."""
    content = row.fields[field]
    if not isinstance(content, list):
        return content
    for part in content:
        if not (isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            msg = f"{row.where}: the {field} has a part of the type {kind!r:.60}, but only text is supported."
            raise DataError(msg)
    return "\n".join(part["text"] for part in content)


def _tool_calls(row: Record, call: Any) -> list[dict[str, Any]]:
    """Calls as `{"type": "function", "function": {"name": ..., "arguments": {...}}}`, the form of today's templates."""
    calls = decoded(row.fields.get("tool_calls") or [])
    single = call if call is not None else decoded(row.fields.get("function_call"))
    calls = [*(calls if isinstance(calls, list) else [calls]), *([] if single is None else [single])]
    return [_tool_call(row, call) for call in calls]


def _tool_call(row: Record, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    name, arguments = function.get("name"), decoded(function.get("arguments") or {})
    if not (isinstance(name, str) and name.strip() and isinstance(arguments, dict)):
        msg = (
            f"{row.where}: a tool call must have a name, and arguments that are an object (or JSON of one), but it is "
            f"{json.dumps(call, default=str)[:80]}."
        )
        raise DataError(msg)
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tools(record: Record) -> list[dict[str, Any]] | None:
    """Schemas as `{"type": "function", "function": {...}}`."""
    _check_named_once(record)
    field = "tools" if record.fields.get("tools") else "functions"
    tools = decoded(record.fields.get(field) or [])
    found = []
    for tool in tools if isinstance(tools, list) else [tools]:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
            shown = json.dumps(tool, default=str)[:60]
            msg = f"{record.where}: {field} must be a list of functions, each with a name, but it has {shown}."
            raise DataError(msg)
        found.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)})
    return found or None
