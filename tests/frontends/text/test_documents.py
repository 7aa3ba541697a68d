"""What people keep chats in, and what is no text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from frontends.text.documents import document_of, plain_text, read_documents
from ir.base.diag import LadingError

BUDGET = 1 << 20
QUESTION, ANSWER = "What floats on water, é?", "Wood, 木."
TURN = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]

CHATS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "messages": ({"messages": TURN}, TURN),
    "a bare list": (TURN, TURN),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}, TURN[1]]}, TURN),
    "sharegpt": ({"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]}, TURN),
    "sharegpt with a system prompt": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}],
        },
        [{"role": "system", "content": "Be brief."}, *TURN],
    ),
    "conversations with roles": ({"id": 3, "conversations": TURN}, TURN),
    "alpaca": ({"instruction": QUESTION, "input": "", "output": ANSWER}, TURN),
    "alpaca with input": (
        {"instruction": "Translate.", "input": "bois", "output": "wood"},
        [{"role": "user", "content": "Translate.\n\nbois"}, {"role": "assistant", "content": "wood"}],
    ),
    "alpaca with history": (
        {"instruction": QUESTION, "output": ANSWER, "history": [["Hello", "Hi"]]},
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, *TURN],
    ),
    "prompt and completion": ({"prompt": QUESTION, "completion": ANSWER}, TURN),
    "prompt and answer in messages": ({"prompt": TURN[:1], "chosen": TURN[1:], "rejected": TURN[:1]}, TURN),
    "question and answer": ({"question": QUESTION, "answer": ANSWER}, TURN),
    "an unanswered turn": ({"messages": TURN[:1]}, TURN[:1]),
    "a call": (
        {"messages": [TURN[0], {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]},
        [TURN[0], {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}],
    ),
}


def read(path: Path) -> list[Any]:
    return [item.messages or item.text for item in read_documents(path, BUDGET)]


def code(path: Path) -> LadingError:
    with pytest.raises(LadingError) as error:
        read(path)
    return error.value


@pytest.mark.parametrize("name", CHATS)
def test_rows_in_every_container(name: str, tmp_path: Path) -> None:
    row, messages = CHATS[name]
    text = json.dumps(row, ensure_ascii=False)
    for file, content in (
        ("a.json", json.dumps([row, row])),
        ("b.json", json.dumps({"version": 1, "data": [row, row]}, ensure_ascii=False, indent=2)),
        ("c.jsonl", f"{text}\n\n{text}\n"),
        ("d.json", f"{text}\n{text}\n"),
        ("e.txt", json.dumps([row, row], indent=1)),
    ):
        path = tmp_path / file
        path.write_text(content, encoding="utf-8")
        assert read(path) == [messages, messages], file


def test_one_chat_is_a_document_of_one_row(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"messages": TURN}))
    assert read(tmp_path / "one.json") == [TURN]


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'id,instruction,input,output\n1,"Say, ""hi""",,hi\n2,Add.,"1\n2",3\n', encoding="utf-8-sig"
    )
    (tmp_path / "t.tsv").write_text("text\tsource\nein Satz\tbuch\n")
    (tmp_path / "pairs.csv").write_text("src,tgt\na,b\n")
    (tmp_path / "long.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert [item[0]["content"] for item in read(tmp_path / "t.csv")] == ['Say, "hi"', "Add.\n\n1\n2"]
    assert read(tmp_path / "t.tsv") == ["ein Satz"]
    assert "row 1" in str(code(tmp_path / "pairs.csv")) and "'src', 'tgt'" in str(code(tmp_path / "pairs.csv"))
    assert code(tmp_path / "long.csv").code == "Q432"


def test_tools_stand_beside_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given in (tools, json.dumps(tools)):
        found = document_of({"messages": TURN, "tools": given}, "")
        assert found is not None and found.tools == tools


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-with-mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends(encoding: str, end: str, tmp_path: Path) -> None:
    def coded(text: str) -> bytes:
        return b"\xff\xfe" + text.encode("utf-16-le") if encoding.endswith("mark") else text.encode(encoding)

    (tmp_path / "a.jsonl").write_bytes(
        coded(end.join([json.dumps({"messages": TURN}), "", "  ", json.dumps({"text": "ü"})]))
    )
    (tmp_path / "b.txt").write_bytes(coded(f"ein Satz ü{end}noch einer{end}"))
    assert read(tmp_path / "a.jsonl") == [TURN, "ü"]
    assert read(tmp_path / "b.txt") == ["ein Satz ü\nnoch einer\n"] == [plain_text(tmp_path / "b.txt")]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n  \r\n\t", b"\xef\xbb\xbf", b"\xff\xfe", b"\x7fELF\0\0\x01" * 50, "ohne Marke".encode("utf-16-le")],
    ids=["empty", "blank", "a mark", "a wide mark", "binary", "UTF-16 without a mark"],
)
@pytest.mark.parametrize("name", ["t.txt", "t.json", "t.jsonl"])
def test_a_file_without_text(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert code(path).code == "Q481"
    with pytest.raises(LadingError) as error:
        plain_text(path)
    assert error.value.code == "Q481"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n{"instruction": "no output"}', "line 2"),
        ("b.json", '[{"text": "x"}, {"src": "a", "tgt": "b"}]', "row 2"),
        ("c.json", '{"a": 1}', "no list"),
        ("d.json", "not json", "not JSON"),
        ("e.json", "[]", "no list"),
        ("f.json", '[{"messages": [{"role": "user", "content": [{"type": "image"}]}]}]', "row 1"),
        ("g.jsonl", '{"text": "\\ud800"}', "line 1"),
        ("h.json", "[" * 100_000, "nested too deeply"),
        ("i.txt", '[{"text": "x"}, {"src": "a", "tgt": "b"}]', "row 2"),
    ],
)
def test_rows_that_are_none(name: str, content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    error = code(path)
    assert error.code == "Q432" and says in str(error)


def test_the_message_names_the_keys_that_were_found(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"source_text": "a", "target_text": "b"}')
    assert "'source_text', 'target_text'" in str(code(path))


def test_plain_text_stays_plain(tmp_path: Path) -> None:
    for content in ('{"a": 1}\n{"b": 2}\n', "[1, 2, 3]\n", "{% if %}", '[{"not": "a row"}]', "[{ broken"):
        path = tmp_path / "t.txt"
        path.write_text(content)
        assert read(path) == [content]


def test_of_a_long_document_evenly_spaced_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"text": f"{number:05d} " + "x" * 200} for number in range(20_000)]))
    found = [int(item[:5]) for item in read(path)]
    assert 4_000 < len(found) < 7_000 and found[0] == 0 and found[-1] > 19_900
    assert {b - a for a, b in pairwise(found)} == {4}


def test_a_directory_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        assert code(path).code == "Q432"
        with pytest.raises(LadingError) as error:
            plain_text(path)
        assert error.value.code == "Q432"
