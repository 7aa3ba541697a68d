"""Tokenizers and strings for the tokenizer tests.

Vocabularies are trained here on text made from a few sentences in many scripts and from sources of the standard
library, so the tests need no file from elsewhere.
"""

from __future__ import annotations

import base64
import json
import os
import random
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from backends.mnn.tokenizer.merges import BYTE_CHARS, spell_bytes
from tests.support.paths import ROOT

META = "\u2581"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, doesn't it? We'll see what they've done; I'd say it's fine.",
    "Large models need careful tokenization: 3.14159, 2024-05-17, 1,000,000 and v2.10.3 are numbers.",
    "今天天气很好，我们一起去公园散步吧。模型的参数量是七十亿，支持中英文混合输入。",
    "機械学習のモデルは、データから規則性を学びます。カタカナとひらがなが混ざっています。",
    "오늘은 날씨가 좋습니다. 우리는 인공지능 모델을 공부하고 있습니다.",
    "Привет, мир! Сегодня мы изучаем нейронные сети и обработку естественного языка.",
    "Καλημέρα κόσμε, η γλώσσα είναι όμορφη και η θάλασσα είναι γαλάζια.",
    "مرحبا بالعالم، هذا نص تجريبي باللغة العربية مع بعض الأرقام ١٢٣٤٥.",
    "שלום עולם, זהו טקסט לבדיקה בעברית עם סימני פיסוק.",
    "नमस्ते दुनिया, यह हिन्दी में एक परीक्षण वाक्य है।",
    "สวัสดีชาวโลก นี่คือประโยคทดสอบภาษาไทยที่ไม่มีช่องว่าง",
    "Xin chào thế giới, đây là một câu tiếng Việt với nhiều dấu thanh.",
    "Größe, Äpfel, Öl und Übermut: naïve Café-Gäste essen Crème brûlée.",
    "Ça va très bien, merci. L'été dernier, j'étais à Besançon avec Noël.",
    "Zażółć gęślą jaźń, příliš žluťoučký kůň, İstanbul'da güneşli bir gün.",
    "বাংলা ভাষায় একটি বাক্য। தமிழ் மொழியில் ஒரு வாக்கியம். ಕನ್ನಡ ಪಠ್ಯ.",
    "გამარჯობა მსოფლიო, Բարեւ աշխարհ, ሰላም ልዑል, សួស្តី​ពិភពលោក.",
)
EMOJI = (
    "😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "❤️‍🔥", "🧑🏿‍💻", "1️⃣", "☕️", "🫠", "👩🏻‍🤝‍👨🏾", "⚡", "→", "∑∫√",
    "½ ² ³", "Ⅷ", "①②", "ﬁn", "ＡＢＣ１２３", "™®©", "€£¥₹", "…—–", "“quoted”", "«x»", "„ja‟",
)  # fmt: skip
SPACES = (
    " ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2003", "    \t ",
    "\f", "\v",
)  # fmt: skip
MARKS = "\u0300\u0301\u0302\u0303\u0308\u030a\u030c\u0323\u0327\u0328\u031b\u0306\u0331"
FORMATS = (
    "\u200d", "\u200c", "\u200b", "\ufeff", "\u200e", "\u200f", "\u2060", "\u00ad", "\ufe0f", "\ufffd", "\ufffd\ufffd",
)  # fmt: skip
# Characters whose handling in MNN is declared inexact for every pattern-based tokenizer.
DECLARED = ("\u0085", "\u2028", "\u2029", "\x01", "\x02", "\x03", "\x04", "\x05", "\x06", "\x07", "'\u017f")


@cache
def training_text() -> tuple[str, ...]:
    """About 600 KB of lines: sentences shuffled word by word, and Python sources."""
    rng = random.Random(7)
    words = [word for sentence in SENTENCES for word in sentence.split(" ")]
    lines = list(SENTENCES) * 30
    for _ in range(4000):
        lines.append(" ".join(rng.choices(words, k=rng.randint(3, 12))))
        lines.append(f"value_{rng.randint(0, 99)} = {rng.randint(0, 99999)}  # {rng.choice(EMOJI)} {rng.random():.4f}")
    for name in ("textwrap", "json/decoder", "heapq", "bisect", "string"):
        lines += (Path(os.__file__).parent / f"{name}.py").read_text(encoding="utf-8").splitlines(keepends=True)
    return tuple(lines)


def sample_strings(count: int, specials: Sequence[str] = (), seed: int = 1) -> list[str]:
    """Strings of every kind a tokenizer meets; no NUL, no lone surrogate, and none of `DECLARED`."""
    rng = random.Random(seed)
    makers: list[Callable[[], str]] = [
        lambda: _words(rng), lambda: _code(rng), lambda: _mixed(rng), lambda: _numbers(rng), lambda: _marks(rng),
        lambda: _identifier(rng), lambda: _emoji(rng), lambda: _any_characters(rng), lambda: _spaces(rng),
        lambda: unicodedata.normalize(rng.choice(("NFC", "NFD", "NFKC", "NFKD")), _words(rng)),
    ]  # fmt: skip
    fixed = ["", " ", "\n", "a", "é", "e\u0301", "\ufffd", "  leading", "trailing  ", "don't DON'T we'LL", *SENTENCES]
    fixed += [unicodedata.normalize("NFD", text) for text in SENTENCES] + list(EMOJI) + list(SPACES) + list(FORMATS)
    strings = fixed[:count]
    while len(strings) < count:
        text = rng.choice(makers)()
        if specials and rng.random() < 0.2:
            at = rng.randint(0, len(text))
            inner = rng.choice(("", " ", "\n")) + rng.choice(specials) + rng.choice(("", " ", "x"))
            text = text[:at] + inner + text[at:]
        strings.append(text)
    return strings


def _words(rng: random.Random) -> str:
    sentence = rng.choice(SENTENCES)
    start = rng.randint(0, len(sentence) - 1)
    return sentence[start : start + rng.randint(1, 60)]


def _code(rng: random.Random) -> str:
    lines = training_text()[-800:]
    at = rng.randrange(len(lines))
    return "".join(lines[at : at + rng.randint(1, 4)]).replace("\n", rng.choice(("\n", "\r\n", "\n\n")))


def _mixed(rng: random.Random) -> str:
    words = [word for sentence in SENTENCES for word in sentence.split(" ")]
    gaps = ("", " ", ", ", "。", "-", "_", "/", "\n")
    return "".join(rng.choice(words) + rng.choice(gaps) for _ in range(rng.randint(2, 9)))


def _numbers(rng: random.Random) -> str:
    pieces = [
        str(rng.randint(0, 10 ** rng.randint(1, 12))) + rng.choice(("", " ", ".", ",", "  ", "%", "x", "年", "\n"))
        for _ in range(rng.randint(1, 6))
    ]
    return rng.choice(("", "n=", "$", "  ", "第")) + "".join(pieces) + rng.choice(("", "٣٤", "½", "二〇二四", "Ⅻ"))


def _marks(rng: random.Random) -> str:
    letters = "aeiouyncszAEIOUgdlr" + "οαωη" + "иеу" + "か"
    out = []
    for _ in range(rng.randint(1, 8)):
        marks = sorted(rng.sample(MARKS, rng.randint(0, 2)), key=unicodedata.combining)
        out += [rng.choice(letters), *marks, rng.choice(("", "", " ", "x"))]
    return "".join(out)


def _identifier(rng: random.Random) -> str:
    parts = ["get", "HTTPServer", "value", "X", "my", "_", "__", "Response", "2", "utf8", "a" * rng.randint(1, 40), "ß"]
    return "".join(rng.choices(parts, k=rng.randint(2, 12))) + rng.choice(("", "()", ".foo", "->bar", "[0]", ";"))


def _emoji(rng: random.Random) -> str:
    return "".join(rng.choice((*EMOJI, " ", "ok", "好", *FORMATS)) for _ in range(rng.randint(1, 8)))


def _spaces(rng: random.Random) -> str:
    return "".join(rng.choice((*SPACES, "a", "Word", "字", "7", ".", "'s")) for _ in range(rng.randint(1, 12)))


_BLOCKS = (
    (0x20, 0x7E), (0xA1, 0x17E), (0x180, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0xDFF),
    (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2010, 0x2027), (0x2030, 0x206F), (0x2070, 0x218F),
    (0x2190, 0x23FF), (0x2500, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
    (0xFB00, 0xFDFF), (0xFE30, 0xFFEF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x1D400, 0x1D7FF), (0x10400, 0x1044F),
)  # fmt: skip


def _any_characters(rng: random.Random) -> str:
    out = []
    for _ in range(rng.randint(1, 10)):
        low, high = rng.choice(_BLOCKS)
        chars = [chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4))]
        # Unassigned characters may be assigned in the newer Unicode version of the reference.
        out += [char for char in chars if unicodedata.category(char) not in ("Cn", "Cc", "Mn", "Mc", "Me")]
        out.append(rng.choice(("", "", " ")))
    return "".join(out)


# -- tokenizers -------------------------------------------------------------------------------------------------------

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _bpe(pattern: str) -> dict[str, Any]:
    """A byte-level BPE of 1500 tokens whose words are cut by a Split on `pattern`, or by ByteLevel for GPT-2's."""
    return json.loads(trained_bpe(pattern))


@cache
def trained_bpe(pattern: str) -> str:
    """The same as text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if pattern == GPT2:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(training_text(), trainer)
    return tokenizer.to_str()


@cache
def _train_sentencepiece(model: str) -> str:
    """A vocabulary over text with U+2581 for spaces, with byte tokens, `<unk>`, `<s>` and `</s>` first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if model == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(vocab_size=1500, special_tokens=first, unk_token="<unk>", show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=first, limit_alphabet=400, show_progress=False)
    tokenizer.train_from_iterator((line.rstrip("\n") for line in training_text()), trainer)
    return tokenizer.to_str()


def added(content: str, number: int = -1, special: bool = True, **flags: bool) -> dict[str, Any]:
    """A row of `added_tokens`."""
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, "special": special, **base, **flags}


def with_added(data: dict[str, Any], tokens: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`data` with these added tokens; ids follow the vocabulary unless the token is part of it."""
    vocab = data["model"]["vocab"]
    known = vocab if isinstance(vocab, dict) else {row[0]: index for index, row in enumerate(vocab)}
    rows, free = [], len(vocab)
    for token in tokens:
        number = known.get(token["content"])
        if number is None:
            number, free = free, free + 1
        rows.append({**token, "id": number})
    data["added_tokens"] = rows
    return data


def bos_processor(text: str, number: int) -> dict[str, Any]:
    """A post-processor that puts one token before the text."""
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": text, "type_id": 0}}, sequence],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
    }


_LEGACY_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": META},
        {"type": "Replace", "pattern": {"String": " "}, "content": META},
    ],
}
_LEGACY_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": META}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@cache
def tokenizer_text(kind: str) -> str:
    """tokenizer.json of one of `KINDS`, as text."""
    return json.dumps(KINDS[kind](), ensure_ascii=False)


def _gpt2() -> dict[str, Any]:
    return with_added(_bpe(GPT2), [added("<|endoftext|>")])


def _added() -> dict[str, Any]:
    """Added tokens of every sort: nested, overlapping, with blanks, beyond ASCII, taking whitespace along."""
    plain = ("<a>", "<a><b>", "b><c", "é", "naïve", "<｜x▁y｜>", "line\nbreak", "好的", "12")
    tokens = [added(text, special=index % 2 == 0) for index, text in enumerate(plain)]
    tokens += [added("<left>", lstrip=True), added("<right>", rstrip=True), added("<both>", lstrip=True, rstrip=True)]
    tokens += [added("<norm>", normalized=True), added("<|word|>", single_word=True)]
    return with_added(_bpe(GPT2), tokens)


def _blanks() -> dict[str, Any]:
    """Runs of blanks as tokens, as in vocabularies made for code."""
    runs = [" " * size for size in range(24, 1, -1)] + ["\t\t\t", "\t\t"]
    data = with_added(_bpe(GPT2), [added(run, special=False, normalized=True) for run in runs])
    return data | {"normalizer": {"type": "NFC"}}


def _qwen2() -> dict[str, Any]:
    thoughts = [added(text, special=False) for text in ("<think>", "</think>")]
    return with_added(_bpe(QWEN2), [*map(added, IM), *thoughts]) | {"normalizer": {"type": "NFC"}}


def _llama3() -> dict[str, Any]:
    data = _bpe(LLAMA3)
    data["model"]["ignore_merges"] = True
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *(f"<|reserved_{n}|>" for n in range(20))]
    with_added(data, map(added, names))
    start = data["added_tokens"][0]["id"]
    chain = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}]
    data["post_processor"] = {"type": "Sequence", "processors": [*chain, bos_processor(names[0], start)]}
    return data


UNREACHED = (
    " jumpsover", " tokenizations", " naïvely", " Besançons", " мирный", " языковой", " thếgiới", " tiếngViệt",
    " κόσμους", " žluťoučkých", " güneşlik", " 公園", " 散步吧", " مرحبابك", " שלוםלך", "foxlike", "Größen",
)  # fmt: skip


def _llama3_ranks() -> dict[str, Any]:
    """As converted from a table of ranks: every split of a token into two tokens is a merge, and some are not reached.

    The words at the end are tokens without any merge, so only ignore_merges finds them, and only as whole words.
    """
    data = _llama3()
    vocab = data["model"]["vocab"]
    rank = {tuple(pair): index for index, pair in enumerate(data["model"]["merges"])}
    order = [a + b for a, b in sorted(rank, key=lambda pair: rank[pair])]
    data["model"]["merges"] = [
        [text[:at], text[at:]]
        for text in dict.fromkeys(order)
        for at in range(1, len(text))
        if text[:at] in vocab and text[at:] in vocab
    ]
    for token in data["added_tokens"]:
        vocab[token["content"]] = token["id"]
    for word in UNREACHED:
        assert spell_bytes(word.encode()) not in vocab
        vocab[spell_bytes(word.encode())] = len(vocab)
    return data


def _o200k() -> dict[str, Any]:
    return with_added(_bpe(O200K), [added("<|endoftext|>"), added("<|call|>", rstrip=True)])


def _deepseek() -> dict[str, Any]:
    data = _bpe(GPT2)
    cuts = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK3]
    split = [{"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False} for cut in cuts]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*split, level]}
    names = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
    with_added(data, map(added, names))
    data["post_processor"] = bos_processor(names[0], data["added_tokens"][0]["id"])
    return data


def _sentencepiece(normalizer: Any, pre_tokenizer: Any, decoder: Any = None, model: str = "bpe") -> dict[str, Any]:
    data = json.loads(_train_sentencepiece(model))
    with_added(data, map(added, ("<unk>", "<s>", "</s>")))
    data |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder or _LEGACY_DECODER}
    data["post_processor"] = bos_processor("<s>", 1)
    return data


def _metaspace(scheme: str, split: bool = False) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": META, "prepend_scheme": scheme, "split": split}


def _gemma() -> dict[str, Any]:
    decoder = {**_LEGACY_DECODER, "decoders": _LEGACY_DECODER["decoders"][:3]}
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return _sentencepiece(_LEGACY_NORMALIZER["normalizers"][1], cut, decoder)


def _unigram(byte_fallback: bool) -> dict[str, Any]:
    data = _sentencepiece(None, _metaspace("always", True), _metaspace("always", True), "unigram")
    if not byte_fallback:
        return data
    data["model"]["byte_fallback"] = True
    data["decoder"] = _LEGACY_DECODER
    return data


def _wordpiece() -> dict[str, Any]:
    from tokenizers import BertWordPieceTokenizer

    maker = BertWordPieceTokenizer(lowercase=True)
    maker.train_from_iterator(training_text(), vocab_size=1500, show_progress=False)
    data = json.loads(maker.to_str())
    return with_added(data, map(added, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")))


def _example() -> dict[str, Any]:
    folder = ROOT / "examples" / "tiny-qwen2.5"
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "example": _example,
    "gpt2": _gpt2,
    "qwen2": _qwen2,
    "added": _added,
    "blanks": _blanks,
    "llama3": _llama3,
    "llama3-ranks": _llama3_ranks,
    "o200k": _o200k,
    "deepseek": _deepseek,
    "sp-legacy": lambda: _sentencepiece(_LEGACY_NORMALIZER, None),
    "sp-metaspace": lambda: _sentencepiece(None, _metaspace("always")),
    "sp-metaspace-split": lambda: _sentencepiece(None, _metaspace("always", True)),
    "sp-first": lambda: _sentencepiece(None, _metaspace("first")),
    "sp-gemma": _gemma,
    "unigram": lambda: _unigram(False),
    "unigram-bytes": lambda: _unigram(True),
    "wordpiece": _wordpiece,
}


# Stages put in place of those of the "gpt2" tokenizer: name -> (key of tokenizer.json, value).
_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_LEVEL_REGEX = {**_LEVEL, "use_regex": True}


def _cuts(*items: dict[str, Any], last: dict[str, Any] = _LEVEL) -> tuple[str, dict[str, Any]]:
    return "pre_tokenizer", {"type": "Sequence", "pretokenizers": [*items, last]}


def _split(behavior: str, invert: bool = False, **pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


_CL100K = QWEN2.replace("]?\\p{L}+|\\p{N}", "]?+\\p{L}+|\\p{N}{1,3}").replace("]+[\\r\\n]*", "]++[\\r\\n]*")
_DIGITS = {"type": "Digits", "individual_digits": True}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "digits one by one": _cuts(_DIGITS),
    "digits together": _cuts({"type": "Digits", "individual_digits": False}),
    "punctuation": _cuts({"type": "Punctuation", "behavior": "Isolated"}),
    "punctuation removed": _cuts({"type": "Punctuation", "behavior": "Removed"}),
    "punctuation together": _cuts({"type": "Punctuation", "behavior": "Contiguous"}),
    "whitespace removed": _cuts({"type": "WhitespaceSplit"}),
    "one character removed": _cuts({"type": "CharDelimiterSplit", "delimiter": "-"}),
    "bert words": _cuts({"type": "BertPreTokenizer"}),
    "merged with previous": _cuts(_split("MergedWithPrevious", String=" ")),
    "merged with next": _cuts(_split("MergedWithNext", String=" ")),
    "merged with next beyond ascii": _cuts(_split("MergedWithNext", String="的")),
    "contiguous": _cuts(_split("Contiguous", Regex="[0-9]")),
    "matches removed": _cuts(_split("Removed", Regex="\\s+")),
    "matches kept": _cuts(_split("Removed", True, Regex=GPT2)),
    "literal": _cuts(_split("Isolated", String="a.")),
    "possessive": _cuts(_split("Isolated", Regex=_CL100K)),
    "letters and marks": _cuts(_split("Isolated", Regex=QWEN2.replace("\\p{L}+|", "[\\p{L}\\p{M}]+|"))),
    "nested set": _cuts(_split("Isolated", Regex=" ?[^(\\s|[.,!?…。，、।۔،])]+")),
    "digits, then words": _cuts(_DIGITS, last=_LEVEL_REGEX),
    "space before text": ("pre_tokenizer", {**_LEVEL_REGEX, "add_prefix_space": True}),
    "NFKC": ("normalizer", {"type": "NFKC"}),
    "lowercase": ("normalizer", {"type": "Lowercase"}),
    "replace": ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "bb"}),
    "runs of spaces": ("normalizer", {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
    "prepend": ("normalizer", {"type": "Prepend", "prepend": "_"}),
    "precompiled": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
}


def stage_text(name: str) -> str:
    """tokenizer.json of "gpt2" with one stage exchanged."""
    data = json.loads(tokenizer_text("gpt2"))
    key, value = STAGES[name]
    if name == "precompiled":
        value = {**value, "precompiled_charsmap": build_charsmap(CHARSMAP)}
    return json.dumps({**data, key: value})


CHARSMAP = {
    "ﬁ": "fi", "½": "1/2", "\u00a0": " ", "\u200b": "", "Ａ": "A", "①": "1", "e\u0301": "é", "a\u0300": "à", "ß": "ss",
}  # fmt: skip


def build_charsmap(entries: dict[str, str]) -> str:
    """A SentencePiece table: a double-array trie over UTF-8 and the replacements, in base64."""
    texts = bytearray()
    root: dict[int, Any] = {}
    for key, value in entries.items():
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(texts)
        texts += value.encode() + b"\0"
    units = [0] * 4096
    used, bases = {0}, {0}

    def free(base: int, node: dict[int, Any]) -> bool:
        return base not in bases and all((base ^ label) not in used and (base ^ label) < 4096 for label in node)

    def place(node: dict[int, Any], at: int) -> None:
        base = next(base for base in range(1, 4096) if free(base, node))
        bases.add(base)
        used.update(base ^ label for label in node)
        units[at] |= (at ^ base) << 10 | (256 if 0 in node else 0)
        for label, child in node.items():
            if label == 0:
                units[base] = child | 1 << 31
            else:
                units[base ^ label] = label
                place(child, base ^ label)

    place(root, 0)
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return base64.b64encode(len(trie).to_bytes(4, "little") + trie + bytes(texts)).decode()


def write_folder(folder: Path, text: str, template: str | None = None, **settings: Any) -> Path:
    """A checkpoint folder with a tokenizer and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def random_vocabulary(size: int, seed: int = 3) -> dict[str, Any]:
    """A byte-level tokenizer.json of a large model's size, with merges that make each of its tokens."""
    rng = random.Random(seed)
    vocab = {char: index for index, char in enumerate(BYTE_CHARS)}
    names = list(vocab)
    heads = [*string.ascii_letters, "\u0120", *BYTE_CHARS[0xE3:0xEA]]
    merges = []
    while len(vocab) < size:
        left, right = rng.choice(heads if rng.random() < 0.3 else names), rng.choice(names[:2000])
        if left + right in vocab or len(left) + len(right) > 16:
            continue
        vocab[left + right] = len(vocab)
        names.append(left + right)
        merges.append(f"{left} {right}")
    model = {"type": "BPE", "dropout": None, "unk_token": None, "ignore_merges": False, "byte_fallback": False}
    cut = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]},
        "post_processor": None,
        "decoder": level,
        "model": model | {"vocab": vocab, "merges": merges},
    }
