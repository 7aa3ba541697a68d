"""The original tokenizer of a checkpoint, as the tokenizers library reads it, in a child process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontends.containers.stand_ins import require_real
from frontends.text.added_tokens import named_in, read_named_tokens
from frontends.text.tokenizer_child import TokenizerWork
from frontends.tokenizers.files import TOKENIZER, read_tokenizer, tokenizer_files
from ir.base.diag import LadingError
from ir.base.json_numbers import whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer


LARGEST_ID = 2**31 - 1
"""The largest token id that a model can be fed."""


@dataclass(frozen=True)
class Encoding:
    """What a text became: its token ids."""

    ids: list[int]


class ForeignTokenizer:
    """A tokenizer that neither cuts nor fills up what it encodes; the work is done in a child."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        """Ids of a text.

        Raises:
            LadingError: Q435 the tokenizer cannot be read any more, F650 the library fails on this text.
        """
        return self.encode_all([text], add_special_tokens)[0]

    def encode_all(self, texts: Iterable[str], add_special_tokens: bool = True) -> list[Encoding]:
        """The same for several texts at once."""
        given = list(texts)
        found = self._ask("encode", {"texts": given, "special": add_special_tokens}, sum(map(len, given)))
        return [Encoding(ids) for ids in found["ids"]]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; errors as for `encode`."""
        return self._ask("decode", {"ids": [int(item) for item in ids], "skip": skip_special_tokens}, len(ids))["text"]

    def check(self) -> None:
        """Raise LadingError Q435 when the tokenizer cannot be read."""
        self._ask("check", {}, 0)

    def _ask(self, what: str, request: dict[str, Any], texts: int) -> dict[str, Any]:
        function = f"{__name__}:work_{what}"
        with TokenizerWork(function, {"folder": str(self._folder), **request}, self._folder, texts) as work:
            return work.result()


def open_tokenizer(folder: Path) -> ForeignTokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
        LadingError: F563 or F564 something else lies in the place of its file, Q435 it is missing or cannot be read,
            F587 its file leaves to a program what is not known here, F650 the library crashes on it.
    """
    for path in tokenizer_files(folder) or (folder / TOKENIZER,):
        require_real(path)
    found = ForeignTokenizer(folder)
    found.check()
    return found


def prefix_of(tokenizer: ForeignTokenizer) -> list[int]:
    """The ids that a tokenizer puts in front of every text, such as BOS."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    return next((whole[:at] for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), [])


# ---- the child's side ----


def load_in_process(folder: Path) -> Tokenizer:
    """The library's own object, for what runs in a child.

    Tokens that the folder names beside the vocabulary are added, as far as the model has rows for them.

    Raises:
        LadingError: Q435 the vocabulary is missing or cannot be read, F587 nobody knows how it is to be read.
    """
    files = tokenizer_files(folder) or (folder / TOKENIZER,)
    path = files[0]
    try:
        path.stat()
        return _load(folder, tuple(map(_version, (*files, folder / "config.json", *named_in(folder)))))
    except (KeyboardInterrupt, SystemExit, LadingError):
        raise
    # The library raises bare Exception for whatever is wrong with the file, or panics, which is no Exception at all.
    except BaseException as error:
        reason = getattr(error, "strerror", None) or error
        hint = "save the checkpoint's tokenizer with transformers"
        raise LadingError("Q435", f"cannot read the tokenizer: {reason}", where=str(path), hint=hint) from error


def _version(path: Path) -> tuple[int, int] | None:
    """Time of the last change and size of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1)
def _load(folder: Path, versions: tuple[tuple[int, int] | None, ...]) -> Tokenizer:
    """A tokenizer; `versions` tell states of the files that it is made of apart."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    # The library does not know byte order marks.
    text = path.read_text(encoding="utf-8-sig") if path.is_file() else json.dumps(read_tokenizer(folder).data)
    tokenizer = Tokenizer.from_str(text)
    _add_named(tokenizer, folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _add_named(tokenizer: Tokenizer, folder: Path) -> None:
    """Add the tokens that transformers adds on loading and that have a row in the embedding."""
    listed = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = [token for token in read_named_tokens(folder) if token.content not in listed]
    if not named:
        return
    from tokenizers import AddedToken

    rows = _rows(folder)
    for token in named:
        new = tokenizer.token_to_id(token.content) is None
        if new and rows is not None and tokenizer.get_vocab_size() >= rows:
            continue
        flags = {key: getattr(token, key) for key in ("lstrip", "rstrip", "normalized", "single_word")}
        tokenizer.add_tokens([AddedToken(token.content, special=token.special, **flags)])


def _rows(folder: Path) -> int | None:
    """Rows of the embedding as far as ``config.json`` says."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=whole) if path.is_file() else {}
    rows = config.get("vocab_size") if isinstance(config, dict) else None
    return rows if isinstance(rows, int) else None


def encoded(tokenizer: Tokenizer, text: str, special: bool, where: str) -> list[int]:
    """Ids of a text by the library's object; LadingError F650 when it fails."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=special).ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise _refused(f"cannot encode {text[:40]!r}", error, where) from error
    if max(ids, default=0) > LARGEST_ID:
        message = f"the tokenizer gives {text[:40]!r} the id {max(ids):,}, and ids are of 32 bits"
        raise LadingError("F650", message, where, "the tokenizer's file may be damaged")
    return ids


def _refused(what: str, error: BaseException, where: str) -> LadingError:
    reason = " ".join(str(error).split())[:200]
    return LadingError("F650", f"the tokenizers library {what}: {reason}", where, "the tokenizer's file may be damaged")


def work_check(request: dict[str, Any]) -> dict[str, Any]:
    """Load a tokenizer."""
    load_in_process(Path(request["folder"]))
    return {}


def work_encode(request: dict[str, Any]) -> dict[str, Any]:
    """Encode texts."""
    tokenizer = load_in_process(Path(request["folder"]))
    return {"ids": [encoded(tokenizer, text, request["special"], request["folder"]) for text in request["texts"]]}


def work_decode(request: dict[str, Any]) -> dict[str, Any]:
    """Decode ids."""
    tokenizer = load_in_process(Path(request["folder"]))
    try:
        return {"text": tokenizer.decode(request["ids"], skip_special_tokens=request["skip"])}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise _refused("cannot decode what the runtime wrote", error, request["folder"]) from error


__all__ = ["Encoding", "ForeignTokenizer", "encoded", "load_in_process", "open_tokenizer", "prefix_of"]
