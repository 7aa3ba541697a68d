"""What a checkpoint's tokenizer is, read from its files without the libraries that own them.

A compile must start fast, so neither transformers nor tokenizers is imported here. The reading follows what
those libraries do with the same files: `tokenizer.json` is the tokenizer, or what `frontends.tokenizers` makes of a
vocabulary in another form; `tokenizer_config.json`,
`special_tokens_map.json`, `generation_config.json`, `config.json` and the chat template files add the names of the
special tokens, the ids that end generation and the template.

Token ids here are plain ints, positions in the model's embedding matrix. Merges are rows of ids, best rank first.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from backends.mnn.tokenizer.ends import EndFiles, find_ends
from backends.mnn.tokenizer.json_shape import check_shape
from frontends.checkpoint.generation import GENAI
from frontends.text.added_tokens import NamedToken, named_tokens, special_settings
from frontends.tokenizers.files import TOKENIZER, read_tokenizer, tokenizer_file
from ir.base.diag import LadingError
from ir.base.json_numbers import LONGEST, whole

SPECIAL_NAMES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_PARTS = ("vocab.json", "merges.txt", "tokenizer_config.json")
"""Files that are no tokenizer alone."""


_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_TOO_LONG = b"0" * (LONGEST + 1)
"""What a number that `whole` refuses looks like with all digits replaced by `_DIGITS`."""

MOST_HOLES = 1 << 20
"""Ids without a token that a vocabulary may have, besides as many as it has tokens; tables of all ids are made."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token matched in the text as it stands, before any normalization or cutting into words.

    `normalized` says that the match is made in the normalized text instead; `single_word` that it may not touch a
    letter, digit or underscore; `lstrip`/`rstrip` that it takes the whitespace on that side with it.
    """

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True, eq=False)
class TokenizerSpec:
    """A parsed tokenizer, complete enough to be written for any MNN release.

    Attributes:
        kind: `bpe`, `unigram` or `wordpiece`.
        vocab: text of each token of the model (without `added`) -> id.
        merges: int32 `[n, 3]`, ids of left part, right part and whole, in order of rank, each pair once (`bpe`).
        scores: float64 `[len(vocab)]`, log probability by id (`unigram`), else None.
        unk: text of the unknown token of the model, or None.
        options: the rest of the `model` object of tokenizer.json.
        normalizer, pre_tokenizer, decoder: the objects of tokenizer.json, None where absent.
        added: added tokens in the order of tokenizer.json.
        prefix_ids, suffix_ids: what the post-processor puts before and after a single text.
        stop_ids: ids that end generation, without repeats, the most specific source first.
        end_sources: where each of them comes from.
        end_problems: end tokens that the files name and that cannot end generation, or look wrong.
        special_texts: `bos`, `eos`, `unk`, `pad`, `sep`, `cls`, `mask` -> text, where named.
        chat_template: jinja text, or None.
        model_vocab_size: rows of the model's embedding, or 0 when not known.
        notes: facts a user should hear about that are not errors.
        unlike: settings of tokenizer_config.json by which texts would be read otherwise, and which are not followed.
        source: name of the file with the vocabulary.
        reasons: how that file's own program gives other ids for rare texts, whatever the runtime does.
    """

    folder: str
    kind: str
    vocab: dict[str, int]
    merges: np.ndarray
    scores: np.ndarray | None
    unk: str | None
    options: Mapping[str, Any]
    normalizer: Mapping[str, Any] | None
    pre_tokenizer: Mapping[str, Any] | None
    decoder: Mapping[str, Any] | None
    added: tuple[AddedToken, ...]
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    end_sources: Mapping[int, tuple[str, ...]]
    end_problems: tuple[str, ...]
    special_texts: Mapping[str, str]
    chat_template: str | None
    model_vocab_size: int
    notes: tuple[str, ...]
    unlike: tuple[str, ...] = ()
    source: str = TOKENIZER
    reasons: tuple[str, ...] = ()

    @property
    def bos(self) -> str | None:
        """Text of the token that begins a sequence, or None."""
        return self.special_texts.get("bos")

    @property
    def eos(self) -> str | None:
        """Text of the token that ends a sequence, or None."""
        return self.special_texts.get("eos")

    @cached_property
    def table_size(self) -> int:
        """Number of ids a written tokenizer covers: every token's id, and every row of the embedding."""
        last = max(max(self.vocab.values(), default=-1), max((token.id for token in self.added), default=-1))
        return max(last + 1, self.model_vocab_size)

    @cached_property
    def encode_prefix_ids(self) -> tuple[int, ...]:
        """The ids that MNN should put before every text it encodes.

        MNN has one list for raw text and for rendered chat alike. `apply_chat_template` of transformers adds no
        prefix, because templates write such tokens themselves. So a token of `prefix_ids` that the chat template
        writes is left out here (else BOS would come twice in every chat), and raw text then gets none; one that the
        template does not write is kept (it comes once in both).
        """
        return tuple(token for token in self.prefix_ids if not self._template_writes(token))

    def _template_writes(self, token: int) -> bool:
        template = self.chat_template or ""
        text = self.text_of(token)
        if text is not None and text == self.bos and re.search(r"\bbos_token\b", template):
            return True
        return bool(text) and text is not None and text in template

    def text_of(self, token: int) -> str | None:
        """The text of an id, or None for an id without token. Linear in the vocabulary: for single look-ups."""
        for item in self.added:
            if item.id == token:
                return item.content
        return next((text for text, known in self.vocab.items() if known == token), None)


def load_tokenizer(
    folder: Path, model_vocab_size: int | None = None, template: str = "default", model: Path | None = None
) -> TokenizerSpec:
    """Read the tokenizer files of a checkpoint folder.

    Args:
        folder: holds at least `tokenizer.json`, or a vocabulary in another form.
        model_vocab_size: rows of the embedding; from `config.json` when None.
        template: which chat template to take where the files name several.
        model: folder of the model, where it is another one; end tokens that it names count too.

    Raises:
        LadingError: B640 no tokenizer; B641 unreadable or malformed; B642 model; B647 added token;
            B648 post-processor; B649 vocabulary; B650 template; B652 stop id; B653 vocabulary too large; Q435, F587
            for vocabularies in other forms than tokenizer.json.
    """
    folder = Path(folder)
    source, data, named, reasons = _read_tokenizer(folder)
    settings = {**named, **_read_json(folder / "tokenizer_config.json")}
    config = _read_json(folder / "config.json")
    size = _vocab_size(folder, config) if model_vocab_size is None else model_vocab_size
    section = _section(data, "model", folder)
    kind, vocab, merges, scores = _read_model(section, folder)
    notes: list[str] = []
    older = _read_json(folder / "special_tokens_map.json")
    more = named_tokens(settings, older, _read_json(folder / "added_tokens.json"))
    added = _within_model(_read_added(data, more, vocab, folder, notes), vocab, size, folder, notes)
    texts = _special_texts(folder, settings, older)
    chat = _chat_template(folder, settings, template)
    known = _Known(vocab, added, size)
    prefix, suffix = _ids_around(folder, data, known)
    ends = find_ends(
        _end_files(folder, model, config, settings, older), known.id_of, known.count, _special(added), chat
    )
    spec = TokenizerSpec(
        folder=str(folder),
        kind=kind,
        vocab=vocab,
        merges=merges,
        scores=scores,
        unk=_unknown(section, kind),
        options={key: value for key, value in section.items() if key not in ("vocab", "merges")},
        normalizer=data.get("normalizer"),
        pre_tokenizer=data.get("pre_tokenizer"),
        decoder=data.get("decoder"),
        added=added,
        prefix_ids=prefix,
        suffix_ids=suffix,
        stop_ids=tuple(ends.sources),
        end_sources=ends.sources,
        end_problems=tuple(ends.problems),
        special_texts=texts,
        chat_template=chat,
        model_vocab_size=size,
        notes=tuple(notes),
        unlike=tuple(_unlike(settings, data.get("pre_tokenizer"))) if source == TOKENIZER else (),
        source=source,
        reasons=reasons,
    )
    tokens = len(vocab) + len(added)
    if spec.table_size > MOST_HOLES + 2 * tokens:
        message = f"ids go up to {spec.table_size - 1}, and there are {tokens} tokens"
        hint = "the tokenizer belongs to another model, or an id is damaged"
        raise LadingError("B649", message, where=str(folder / source), hint=hint)
    return spec


# -- files ------------------------------------------------------------------------------------------------------------


def _read_tokenizer(folder: Path) -> tuple[str, dict[str, Any], Mapping[str, str], tuple[str, ...]]:
    """Name of the vocabulary's file, what a `tokenizer.json` holds of it, its own special tokens, its reasons."""
    path = tokenizer_file(folder)
    if path is None:
        other = [name for name in _PARTS if (folder / name).is_file()]
        found = f"only {', '.join(other)}" if other else "no tokenizer file"
        raise LadingError(
            "B640",
            f"no tokenizer in this folder ({found})",
            where=str(folder),
            hint="copy its tokenizer.json or tokenizer.model here, or name its folder with --tokenizer",
        )
    if path.name != TOKENIZER:
        made = read_tokenizer(folder)
        return path.name, made.data, made.named, made.reasons
    data = _read_json(path)
    check_shape(data, str(path))
    return path.name, data, {}, ()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        raw = path.read_bytes()
        # Python calls a function for each number otherwise, of which vocabularies are full.
        limited = whole if _TOO_LONG in raw.translate(_DIGITS) else None
        data = json.loads(raw.removeprefix(BOM_UTF8).decode(), parse_int=limited)
        if b"\\ud" in raw.lower():
            json.dumps(data, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise LadingError("B641", f"cannot be read as JSON: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise LadingError("B641", f"holds {type(data).__name__} where an object is expected", where=str(path))
    return data


def _section(data: Mapping[str, Any], key: str, folder: Path) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise LadingError("B641", f"has no object {key!r}", where=str(folder / "tokenizer.json"))
    return value


def _unlike(settings: Mapping[str, Any], pre_tokenizer: Any) -> Iterator[str]:
    """Settings by which transformers reads texts otherwise than ``tokenizer.json`` says."""
    if settings.get("split_special_tokens") is True:
        yield "split_special_tokens is true: transformers then reads special tokens as plain text"
    wanted = settings.get("add_prefix_space")
    for step in _steps(pre_tokenizer):
        found = step.get("add_prefix_space")
        if step.get("type") == "ByteLevel" and isinstance(wanted, bool) and isinstance(found, bool) and wanted != found:
            yield f"add_prefix_space is {json.dumps(wanted)}, and {json.dumps(found)} in tokenizer.json"


def _steps(stage: Any) -> Iterator[Mapping[str, Any]]:
    """A stage, or those of a sequence of stages."""
    if isinstance(stage, dict):
        inner = stage.get("pretokenizers")
        for item in inner if isinstance(inner, list) else ():
            yield from _steps(item)
        yield stage


def _vocab_size(folder: Path, config: Mapping[str, Any]) -> int:
    inner = config.get("text_config")
    value = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LadingError("B641", f"vocab_size is {value!r}, not a count", where=str(folder / "config.json"))
    return value


def _special_texts(folder: Path, settings: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the named special tokens."""
    merged = special_settings(settings, older)
    texts: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        value = merged.get(name + "_token")
        if isinstance(value, dict):
            value = value.get("content")
        if value is None:
            continue
        if not isinstance(value, str):
            raise LadingError(
                "B641", f"{name}_token is {value!r}, not text", where=str(folder / "tokenizer_config.json")
            )
        texts[name] = value
    return texts


def _chat_template(folder: Path, settings: Mapping[str, Any], wanted: str) -> str | None:
    """The chat template: a file of its own goes before `tokenizer_config.json`, as in transformers."""
    path = folder / "chat_template.jinja"
    if wanted != "default":
        path = folder / "additional_chat_templates" / f"{wanted}.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise LadingError("B650", f"cannot be read: {error}", where=str(path)) from error
    value, where = _read_json(folder / "chat_template.json").get("chat_template"), "chat_template.json"
    if value is None:
        value, where = settings.get("chat_template"), "tokenizer_config.json"
    if value is None:
        # Where only named templates exist, transformers does not render chats without a name either.
        value = {file.stem: None for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))} or None
        where = "additional_chat_templates"
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        if wanted not in value:
            names = ", ".join(sorted(str(name) for name in value)) or "none"
            hint = "save the one that chats are to be written with as chat_template.jinja"
            raise LadingError("B650", f"no chat template {wanted!r}; there is: {names}", str(folder / where), hint)
        value = value[wanted]
    if value is not None and not isinstance(value, str):
        raise LadingError("B650", f"chat_template is {type(value).__name__}, not text", where=str(folder / where))
    return value or None


# -- vocabulary -------------------------------------------------------------------------------------------------------


def _read_model(model: Mapping[str, Any], folder: Path) -> tuple[str, dict[str, int], np.ndarray, np.ndarray | None]:
    """Kind, vocabulary, merges and scores of the `model` object."""
    where = str(folder / "tokenizer.json")
    kind = model.get("type") or _guess_kind(model)
    none = np.zeros((0, 3), np.int32)
    if kind == "Unigram":
        pieces, scores = _read_pieces(model.get("vocab"), where)
        return "unigram", pieces, none, scores
    if kind not in ("BPE", "WordPiece"):
        raise LadingError("B642", f"vocabulary model of type {kind!r}", where=where)
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise LadingError("B641", "the model has no vocabulary object", where=where)
    values = vocab.values()
    if set(map(type, values)) != {int} or min(values) < 0 or len(set(values)) != len(vocab):
        raise LadingError("B649", "ids of the vocabulary are not distinct whole numbers from 0 on", where=where)
    if kind == "WordPiece":
        return "wordpiece", vocab, none, None
    return "bpe", vocab, _read_merges(model.get("merges"), vocab, where), None


def _guess_kind(model: Mapping[str, Any]) -> str:
    """The model type of a file that does not say it, as the tokenizers library infers it."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece"


def _read_pieces(pieces: Any, where: str) -> tuple[dict[str, int], np.ndarray]:
    if not isinstance(pieces, list) or not pieces:
        raise LadingError("B641", "the Unigram model has no list of pieces", where=where)
    for index, row in enumerate(pieces):
        good = isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], (int, float))
        if not good:
            raise LadingError("B641", f"piece {index} is {row!r}, not a text and a score", where=where)
    return {row[0]: index for index, row in enumerate(pieces)}, np.array([row[1] for row in pieces], np.float64)


def _read_merges(merges: Any, vocab: Mapping[str, int], where: str) -> np.ndarray:
    """Merges as id pairs, best first; of a pair listed twice the later rank holds, as in the tokenizers library."""
    if not isinstance(merges, list):
        raise LadingError("B641", "the BPE model has no list of merges", where=where)
    try:
        if merges and isinstance(merges[0], str):
            pairs, wholes = _spelled_merges(merges)
        else:
            pairs, wholes = list(chain.from_iterable(merges)), [a + b for a, b in merges]
        parts = np.fromiter(map(vocab.__getitem__, pairs), np.int32, 2 * len(merges))
        whole = np.fromiter(map(vocab.__getitem__, wholes), np.int32, len(merges))
    except (KeyError, ValueError, TypeError, AttributeError):
        raise _bad_merge(merges, vocab, where) from None
    except OverflowError:
        raise LadingError("B649", "a token has an id of more than 31 bits", where=where) from None
    ids = np.column_stack((parts.reshape(-1, 2), whole))
    keys = ids[:, 0].astype(np.int64) << 32 | ids[:, 1]
    if np.diff(np.sort(keys)).all():
        return ids
    last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
    return ids[np.sort(last)]


def _spelled_merges(merges: list[str]) -> tuple[list[str], list[str]]:
    """The parts of merges that are spelled with a space between them, and the wholes; ValueError for another spelling."""
    lines = "\n".join(merges)
    marks = np.frombuffer(lines.encode("utf-8", "surrogatepass"), np.uint8)
    marks = marks[(marks == 0x20) | (marks == 0x0A)]
    if len(marks) == 2 * len(merges) - 1 and (marks[::2] == 0x20).all():
        return lines.replace("\n", " ").split(" "), lines.replace(" ", "").split("\n")
    # Tokens hold line breaks, or merges are no two tokens.
    if any(merge.count(" ") != 1 for merge in merges):
        raise ValueError
    return " ".join(merges).split(" "), [merge.replace(" ", "") for merge in merges]


def _bad_merge(merges: Sequence[Any], vocab: Mapping[str, int], where: str) -> LadingError:
    for rank, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            return LadingError("B649", f"merge {rank} is {merge!r}, not two tokens", where=where)
        for text in (*parts, "".join(parts)):
            if text not in vocab:
                return LadingError("B649", f"merge {rank} {merge!r} needs {text!r}, no token", where=where)
    return LadingError("B641", "the list of merges mixes two spellings", where=where)


def _unknown(model: Mapping[str, Any], kind: str) -> str | None:
    if kind != "unigram":
        value = model.get("unk_token", "[UNK]" if kind == "wordpiece" else None)
        return value if isinstance(value, str) else None
    index = model.get("unk_id")
    pieces = model["vocab"]
    return pieces[index][0] if isinstance(index, int) and 0 <= index < len(pieces) else None


def _read_added(
    data: Mapping[str, Any], more: Sequence[NamedToken], vocab: Mapping[str, int], folder: Path, notes: list[str]
) -> tuple[AddedToken, ...]:
    """Added tokens with the ids that the tokenizers library gives them on loading; those of tokenizer.json come first.

    It ignores the listed id: a token of the vocabulary keeps that id, any other takes the next free one.
    """
    where = str(folder / "tokenizer.json")
    tokens: dict[str, AddedToken] = {}
    taken = set(vocab.values())
    last = -1
    rows = data.get("added_tokens") or []
    for row in rows if isinstance(rows, list) else [rows]:
        content = row.get("content") if isinstance(row, dict) else None
        if not isinstance(content, str) or not content:
            raise LadingError("B647", f"added token without text: {row!r:.60}", where=where)
        if content in tokens:
            continue
        flags = {key: bool(row.get(key)) for key in ("special", "lstrip", "rstrip", "normalized", "single_word")}
        last = _add(tokens, AddedToken(-1, content, **flags), vocab, taken, last, where)
        if row.get("id") != tokens[content].id:
            number = tokens[content].id
            notes.append(f"added token {content!r} has id {number}, not the {row.get('id')} of tokenizer.json")
    for item in more:
        if item.content in tokens:
            continue
        token = AddedToken(-1, item.content, item.special, item.lstrip, item.rstrip, item.normalized, item.single_word)
        last = _add(tokens, token, vocab, taken, last, str(folder / item.source))
        number = tokens[item.content].id
        if item.id not in (None, number):
            notes.append(f"token {item.content!r} of {item.source} has id {number}, not {item.id}, as in transformers")
    return tuple(tokens.values())


def _add(
    tokens: dict[str, AddedToken], token: AddedToken, vocab: Mapping[str, int], taken: set[int], last: int, where: str
) -> int:
    """Add a token with its id, and return the highest id of an added token."""
    number = vocab.get(token.content)
    if number is None:
        number = last + 1 if last >= len(vocab) else len(vocab)
        if number in taken:
            raise LadingError(
                "B647", f"added token {token.content!r:.60} gets id {number} of another token", where=where
            )
    tokens[token.content] = replace(token, id=number)
    return max(last, number)


def _within_model(
    added: tuple[AddedToken, ...], vocab: Mapping[str, int], size: int, folder: Path, notes: list[str]
) -> tuple[AddedToken, ...]:
    """The added tokens that have a row in the embedding; the rest are named in `notes` and left out."""
    if not size:
        return added
    if max(vocab.values()) >= size:
        raise LadingError(
            "B653",
            f"the vocabulary reaches id {max(vocab.values())}, the embedding has {size} rows",
            where=str(folder / "config.json"),
            hint="check vocab_size, or take the tokenizer that belongs to this model",
        )
    for token in added:
        if token.id >= size:
            notes.append(f"added token {token.content!r} (id {token.id}) is left out: the embedding has {size} rows")
    return tuple(token for token in added if token.id < size)


# -- ids around a text ------------------------------------------------------------------------------------------------


class _Known:
    """All tokens of a tokenizer by text, and how many ids there are."""

    def __init__(self, vocab: Mapping[str, int], added: tuple[AddedToken, ...], size: int) -> None:
        self.vocab = vocab
        self.added = {token.content: token.id for token in added}
        self.count = 1 + max(size - 1, max(vocab.values(), default=-1), max(self.added.values(), default=-1))

    def id_of(self, text: str | None) -> int | None:
        return None if text is None else self.added.get(text, self.vocab.get(text))


def _ids_around(folder: Path, data: Mapping[str, Any], known: _Known) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after a text."""
    where = str(folder / "tokenizer.json")
    prefix, suffix = _affixes(data.get("post_processor"), where)
    if not all(0 <= number < known.count for number in (*prefix, *suffix)):
        problem = f"the post-processor adds the ids {[*prefix, *suffix]} to a vocabulary of {known.count}"
        raise LadingError("B648", problem, where=where)
    return prefix, suffix


def _affixes(processor: Any, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor puts before and after a single text."""
    kind = processor.get("type") if isinstance(processor, dict) else None
    if processor is None or kind == "ByteLevel":
        return (), ()
    if kind == "Sequence":
        before: tuple[int, ...] = ()
        after: tuple[int, ...] = ()
        for child in processor.get("processors") or ():
            left, right = _affixes(child, where)
            before, after = left + before, after + right
        return before, after
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (_pair_id(processor, "cls", where),), (_pair_id(processor, "sep", where),)
    if kind != "TemplateProcessing":
        raise LadingError("B648", f"post-processor of type {kind!r}", where=where)
    sides: tuple[list[int], list[int]] = ([], [])
    seen = 0
    for item in processor.get("single") or ():
        name, inner = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else ("", None)
        label = inner.get("id") if isinstance(inner, dict) else None
        if name == "SpecialToken":
            sides[seen].extend(_template_ids(label, processor, where))
            continue
        if name != "Sequence" or label != "A" or seen:
            raise LadingError("B648", "the template for a single text holds more than that text", where=where)
        seen = 1
    return tuple(sides[0]), tuple(sides[1])


def _pair_id(processor: Mapping[str, Any], key: str, where: str) -> int:
    value = processor.get(key)
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
        return value[1]
    raise LadingError("B648", f"the post-processor gives {key!r} as {value!r}, not a token and an id", where=where)


def _template_ids(name: Any, processor: Mapping[str, Any], where: str) -> list[int]:
    entry = (processor.get("special_tokens") or {}).get(name) if isinstance(name, str) else None
    numbers = entry.get("ids") if isinstance(entry, dict) else None
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise LadingError("B648", f"the post-processor names {name!r} but gives no ids for it", where=where)
    return numbers


def _special(added: tuple[AddedToken, ...]) -> list[str]:
    return [token.content for token in added if token.special]


def _end_files(
    folder: Path,
    model: Path | None,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    older: Mapping[str, Any],
) -> EndFiles:
    """What the files of a checkpoint say of the end of generation."""
    generation = _read_json(folder / "generation_config.json")
    ids, strings = _end_ids(config, generation), generation.get("stop_strings")
    if model is not None and model.resolve() != folder.resolve():
        generation = _read_json(model / "generation_config.json")
        ids += _end_ids(_read_json(model / "config.json"), generation)
        strings = generation.get("stop_strings", strings)
    for place in dict.fromkeys((folder, *((model,) if model is not None else ()))):
        genai = _read_json(place / GENAI).get("model")
        ids.append((GENAI, genai.get("eos_token_id") if isinstance(genai, dict) else None))
    return EndFiles(
        str(folder),
        ids,
        [
            ("tokenizer_config.json", settings.get("eos_token")),
            ("special_tokens_map.json", older.get("eos_token")),
        ],
        strings,
    )


def _end_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> list[tuple[str, Any]]:
    inner = config.get("text_config")
    return [
        ("generation_config.json", generation.get("eos_token_id")),
        ("config.json", config.get("eos_token_id")),
        ("config.json", inner.get("eos_token_id") if isinstance(inner, dict) else None),
    ]
