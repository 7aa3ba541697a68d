"""Tokenizer files for a model whose tokenizer nobody named: MNN's engine loads no model without one.

They hold one token for each id, spelled ``<ID>``, so that what is decoded shows the ids; text cannot be encoded.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.mnn.target.releases import MnnTarget
from backends.mnn.tokenizer.write_files import TokenizerFiles, write_files
from ir.base.scratch import scratch_folder


def write_placeholder(folder: Path, target: MnnTarget, rows: int) -> TokenizerFiles:
    """Write the forms that a target needs into a folder; their kind is empty, since they are no tokenizer."""
    from backends.mnn.write.llm_folder import tokenizer_request

    vocab = {f"<{number}>": number for number in range(rows)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    data: dict[str, Any] = {"version": "1.0", "added_tokens": [], **dict.fromkeys(parts), "model": model}
    with scratch_folder() as scratch:
        (scratch / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
        request = tokenizer_request(scratch, folder, target, compare=False, lines=None)
        return replace(write_files(request), kind="", exact_reasons=(), text_reasons=(), warnings=())


__all__ = ["write_placeholder"]
