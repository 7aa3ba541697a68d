"""The texts and chats of a file, whatever people keep them in.

Plain text, JSON lines, or one JSON document with a list of rows. A row is a text, or a chat in one of the forms that data
sets have: ``messages``, ShareGPT's ``conversations``, Alpaca's ``instruction``, ``input`` and ``output``, or a prompt and
its answer. What a file is decides its content first and its name second, and what is no row is an error that names the
place: nothing is measured on the punctuation of a data format.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from frontends.text.chat_child import Message
from ir.base.diag import LadingError

LINES = (".jsonl", ".ndjson")
"""Suffixes of files with a row a line."""
TABLES = {".csv": ",", ".tsv": "\t"}
"""Suffixes of tables, and what stands between their fields."""
EXCERPTS = 64
"""Number of excerpts that are read of a file which is longer than the text that is wanted."""
SMALL = 1 << 20
"""Bytes that are always read whole."""
MOST_JSON = 256 << 20
"""Bytes of a JSON document or of a file in UTF-16: neither can be read in excerpts."""

FORMS = (
    'rows are {"text": ...}, {"messages": [{"role", "content"}, ...]}, {"conversations": [{"from", "value"}, ...]}, '
    '{"instruction", "input", "output"} or {"prompt", "completion"}; see docs/calibration.md'
)
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
}
"""Names of roles in data sets that templates call otherwise; others are left to the template."""
ANSWERS = ("completion", "response", "output", "answer", "chosen")
PROMPTS = ("prompt", "question", "query", "input")


@dataclass(frozen=True)
class Document:
    """One text, or one chat that is yet to be made text.

    Attributes:
        where: which it is, for messages.
        text: the text; of a chat, what it is without a template, where that can be told.
        messages: of a chat.
        tools: definitions of functions that the chat may call.
    """

    where: str
    text: str = ""
    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] | None = None


def read_documents(path: Path, budget: int) -> Iterator[Document]:
    """The documents of a file; of one with more bytes than `budget`, evenly spaced ones of about that size together.

    Raises:
        LadingError: Q432 it cannot be read or has a bad row, Q481 it holds no text.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(1 << 16)
            check_is_text(head, size, path)
            wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            if wide or suffix in TABLES or _is_document(head, suffix):
                if size > MOST_JSON:
                    message = (
                        f"the file has {size} bytes, and a JSON document or UTF-16 of more than {MOST_JSON} is not read"
                    )
                    raise LadingError("Q432", message, str(path), "give JSON lines or plain text in UTF-8")
                file.seek(0)
                yield from _whole(_decoded(file.read(), str(path)), path, budget)
                return
            excerpts = _excerpts(file, size, budget)
    except OSError as error:
        raise LadingError("Q432", f"cannot read the text: {error.strerror}", where=str(path)) from error
    for start, data in excerpts:
        where = str(path) if len(excerpts) == 1 else f"{path} from byte {start}"
        text = _decoded(data, where)
        if suffix in LINES or _is_rows(text):
            yield from parsed_lines(text, where)
        else:
            yield Document(where, text)


def check_is_text(head: bytes, size: int, path: Path) -> None:
    """Refuse a file that holds no text.

    Args:
        head: its beginning, some thousand bytes.
        size: its size in bytes.

    Raises:
        LadingError: Q481.
    """
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in head and not wide:
        message = "the file is binary: it has NUL bytes where text has none"
        raise LadingError("Q481", message, str(path), "give a text file in UTF-8, or in UTF-16 with a byte order mark")
    if len(head) == size and not head.decode("utf-16" if wide else "utf-8-sig", "replace").strip():
        raise LadingError("Q481", f"the file has {size} bytes and no text", str(path), "give a file with text in it")


def plain_text(path: Path) -> str:
    """A file as text: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        LadingError: Q481 it is empty or binary, Q432 it cannot be read or decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LadingError("Q432", f"cannot read the text: {error.strerror}", where=str(path)) from error
    check_is_text(data, len(data), path)
    return _decoded(data, str(path))


# ---- bytes ----


def _decoded(data: bytes, where: str) -> str:
    """Text of bytes, without byte order mark and carriage returns."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        form = "UTF-16, as its first bytes say" if wide else "UTF-8"
        message = f"the text is not {form}: {error.reason} at byte {error.start}"
        raise LadingError("Q432", message, where, "save it as UTF-8") from error
    return text.replace("\r\n", "\n")


def _excerpts(file: BinaryIO, size: int, budget: int) -> list[tuple[int, bytes]]:
    """The whole file, or whole lines from evenly spaced places; each with its offset. No byte is in two excerpts."""
    file.seek(0)
    if size <= max(budget, SMALL):
        return [(0, file.read())]
    length = budget // EXCERPTS
    found = []
    for number in range(EXCERPTS):
        start = number * (size - length) // (EXCERPTS - 1)
        file.seek(start)
        data = file.read(length)
        end = data.rfind(b"\n") + 1 if number < EXCERPTS - 1 else len(data)
        begin = data.find(b"\n") + 1 if number else 0
        found.append((start, data[begin:end] if begin < end else _whole_letters(data)))
    return found


def _whole_letters(data: bytes) -> bytes:
    """A piece of one long line without the halves of letters at its ends."""
    begin = next((at for at in range(min(4, len(data))) if data[at] & 0xC0 != 0x80), 0)
    try:
        _, used = codecs.utf_8_decode(data[begin:], "strict", False)
    except UnicodeDecodeError:
        # Whoever decodes the piece reports it.
        return data
    return data[begin : begin + used]


# ---- one JSON document ----


def _is_document(head: bytes, suffix: str) -> bool:
    """Whether a file looks like one JSON document: it is named so, or it begins with a list of objects."""
    start = head.decode("utf-8-sig", "replace").lstrip()[:4096]
    bare = "".join(start.split())
    return suffix == ".json" or (suffix not in LINES and bare.startswith(("[{", "[[{")))


def _is_rows(text: str) -> bool:
    """Whether a file with another name holds JSON lines: the first two lines are rows that are known."""
    lines = [line for _, line in zip(range(2), filter(str.strip, text.split("\n")), strict=False)]
    return bool(lines) and all(_is_row(line) for line in lines)


def _is_row(line: str) -> bool:
    if not line.lstrip().startswith(("{", "[{")):
        return False
    try:
        return document_of(json.loads(line), "") is not None
    except (ValueError, RecursionError):
        return False


def _whole(text: str, path: Path, budget: int) -> Iterator[Document]:
    """The rows of a text that is read whole: a JSON document, JSON lines, or neither."""
    where, suffix = str(path), path.suffix.lower()
    if suffix in LINES:
        yield from parsed_lines(text, where)
        return
    if suffix in TABLES:
        yield from _table(text, TABLES[suffix], where)
        return
    try:
        data = _loaded(text)
    except ValueError as error:
        if _is_rows(text):
            yield from parsed_lines(text, where)
            return
        if suffix == ".json":
            raise LadingError("Q432", f"the file is not JSON: {error}", where, FORMS) from error
        yield Document(where, text)
        return
    rows = _rows(data)
    if suffix != ".json" and (rows is None or document_of(rows[0], where) is None):
        yield Document(where, text)
        return
    if rows is None:
        raise LadingError("Q432", "the JSON document holds no list of chats or texts", where, FORMS)
    step = max(1, len(text) // max(budget, SMALL))
    for number, row in enumerate(rows):
        if number % step == 0:
            yield _known(row, f"{where}, row {number + 1}")


def _table(text: str, between: str, where: str) -> Iterator[Document]:
    """The rows of a table whose first line names the columns.

    Raises:
        LadingError: Q432 a row is neither a chat nor a text, or the table is damaged.
    """
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text), delimiter=between), 1):
            yield _known({key: value for key, value in row.items() if isinstance(key, str)}, f"{where}, row {number}")
    except csv.Error as error:
        raise LadingError("Q432", f"the table cannot be read: {error}", where, FORMS) from error


def _rows(data: Any) -> list[Any] | None:
    """The rows of a JSON document: the list that it is or holds, or itself; None where there are none."""
    if isinstance(data, list) and data:
        return data if document_of(data, "") is None else [data]
    if not isinstance(data, dict):
        return None
    if document_of(data, "") is not None:
        return [data]
    lists = [item for item in data.values() if isinstance(item, list) and item]
    return lists[0] if len(lists) == 1 and document_of(lists[0][0], "") is not None else None


# ---- rows ----


def _loaded(text: str) -> Any:
    """Parsed JSON whose texts can be encoded.

    Raises:
        ValueError: the text is no JSON, is nested too deeply, or holds half a character.
    """
    try:
        data = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(data, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return data


def parsed_lines(text: str, where: str) -> Iterator[Document]:
    """The rows of JSON lines; empty lines are passed over.

    Raises:
        LadingError: Q432 with the number of a line that is none.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            row = _loaded(line)
        except ValueError as error:
            raise LadingError("Q432", f"the line is not JSON: {error}", place) from error
        yield _known(row, place)


def _known(row: Any, where: str) -> Document:
    found = document_of(row, where)
    if found is not None:
        return found
    seen = f"it has {', '.join(map(repr, row))}" if isinstance(row, dict) and row else f"it is {_kind(row)}"
    raise LadingError("Q432", f"the row is neither a chat nor a text: {seen[:200]}", where, FORMS)


def _kind(row: Any) -> str:
    names = {dict: "an empty object", list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(row), "a number")


def document_of(row: Any, where: str) -> Document | None:
    """The text or chat that a row is; None where it is neither."""
    if isinstance(row, str):
        return Document(where, row) if row.strip() else None
    if isinstance(row, list):
        messages = _messages(row)
        return Document(where, messages=messages) if messages else None
    if not isinstance(row, dict):
        return None
    for key in ("messages", "conversations", "conversation"):
        if isinstance(row.get(key), list):
            messages = _messages(row[key])
            return _chat(row, messages, where) if messages else None
    if isinstance(row.get("text"), str):
        return Document(where, row["text"])
    return _instruction(row, where) or _answered(row, where)


def _chat(row: Mapping[str, Any], messages: Sequence[Message], where: str) -> Document:
    """A chat with what stands beside its messages: a system prompt, tools."""
    system, tools = row.get("system"), row.get("tools")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = None
    given = isinstance(tools, list) and tools and all(isinstance(item, dict) for item in tools)
    return Document(where, messages=messages, tools=tools if given else None)


def _messages(items: Sequence[Any]) -> list[Message] | None:
    """Messages under the names that templates know; None where one is no message."""
    found = [_message(item) for item in items]
    return None if None in found or not found else [item for item in found if item is not None]


def _message(item: Any) -> Message | None:
    if not isinstance(item, dict):
        return None
    sharegpt = "from" in item and "role" not in item
    role = item.get("from" if sharegpt else "role")
    content = _content(item.get("value") if sharegpt else item.get("content"))
    calls = item.get("tool_calls")
    if not isinstance(role, str) or not role or (content is None and not (isinstance(calls, list) and calls)):
        return None
    known = ROLES.get(role, role)
    kept = {} if sharegpt else {key: value for key, value in item.items() if key not in ("role", "content")}
    return {
        "role": known if sharegpt or role in ("human", "gpt", "chatgpt") else role,
        "content": content or "",
        **kept,
    }


def _content(content: Any) -> str | None:
    """The text of a message: a text, or parts that are texts; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    parts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None


def _instruction(row: Mapping[str, Any], where: str) -> Document | None:
    """Alpaca's form; the input, where there is one, follows the instruction."""
    instruction, answer = row.get("instruction"), _first(row, ANSWERS)
    if not isinstance(instruction, str) or not isinstance(answer, str):
        return None
    more = row.get("input")
    question = f"{instruction}\n\n{more}" if isinstance(more, str) and more.strip() else instruction
    turns: list[Message] = []
    for turn in row.get("history") or ():
        if isinstance(turn, list) and len(turn) == 2 and all(isinstance(item, str) for item in turn):
            turns += _turn(*turn)
    messages = [*turns, *_turn(question, answer)]
    return _with_text(_chat(row, messages, where))


def _answered(row: Mapping[str, Any], where: str) -> Document | None:
    """A prompt and its answer, as texts or as messages."""
    prompt, answer = _first(row, PROMPTS), _first(row, ANSWERS)
    if isinstance(prompt, str) and isinstance(answer, str):
        return _with_text(_chat(row, _turn(prompt, answer), where))
    if isinstance(prompt, list) and isinstance(answer, list):
        messages = _messages([*prompt, *answer])
        return _chat(row, messages, where) if messages else None
    return None


def _with_text(chat: Document) -> Document:
    """The chat with the text that it is where there is no template."""
    return Document(chat.where, "\n\n".join(item["content"] for item in chat.messages), chat.messages, chat.tools)


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if key in row), None)


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


__all__ = ["Document", "document_of", "parsed_lines", "plain_text", "read_documents"]
