"""Run MNN's tokenizer in another process, with the installed release or with one from a folder of environments."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from backends.mnn.target.environments import ReleaseEnvironments

RELEASES = ("3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1")

# A model of two operators (Input `input_ids`, UnaryOp NEG to `logits`), as MNN's converter writes it. It loads on all
# releases and is never run: the tokenizer is only reachable through a loaded model.
_MODEL = base64.b64decode(
    "GAAAABQADAAAAAAAAAAIAAAAAAAAAAQAFAAAAAgAAAAsAAAAAgAAABQAAAAEAAAABgAAAGxvZ2l0cwAACQAAAGlucHV0X2lkcwAAAAIAAAB0AAAA"
    "FAAAABAAHAAIABAADAAUAAQAGAAQAAAAGAAAABwAAAA0AAAARgAAABgAAABlAAAAAQAAAAEAAAABAAAAAAAAAAYAAABsb2dpdHMAAAgADAAIAAQA"
    "CAAAAAEAAAABAAAAEAAcAAQAEAAMABQACAAYABAAAAAYAAAAGAAAADQAAAAVAAAAFAAAACIAAAAAAAAAAQAAAAAAAAAJAAAAaW5wdXRfaWRzAAoA"
    "EAAMAAgABwAKAAAAAAAAAAEAAAAEAAAAAwAAAAEAAAABAAAACAAAAA=="
)
_CHILD = """
import json, os, sys
import MNN.llm as llm
root = sys.argv[1]

def show(model, number):
    try:
        return model.tokenizer_decode(number).encode()
    except UnicodeDecodeError as error:
        return error.object

answers = []
for name in sorted(os.listdir(root), key=int):
    folder = os.path.join(root, name)
    model = llm.create(os.path.join(folder, "config.json"))
    model.load()
    job = json.load(open(os.path.join(folder, "job.json")))
    rows = []
    for text in job["texts"]:
        ids = model.tokenizer_encode(text)
        rows.append([ids, b"".join(show(model, number) for number in ids).hex()])
    answers.append([rows, [model.apply_chat_template(messages) for messages in job["chats"]]])
with open(sys.argv[2], "w") as file:
    json.dump(answers, file)
sys.stdout.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Job:
    """A tokenizer file and what to do with it; `jinja` is the object of llm_config.json."""

    tokenizer: bytes
    texts: Sequence[str] = ()
    chats: Sequence[Any] = ()
    jinja: Any = None


@dataclass(frozen=True)
class Answer:
    """Ids and joined single-token decodings of the texts, and the rendered chats."""

    ids: list[list[int]]
    decoded: list[bytes]
    prompts: list[str]


def interpreter_of(release: str) -> str | None:
    """The Python that has this MNN release: of its own environment, else this one if it has it."""
    path = ReleaseEnvironments().find(release)
    if path is not None:
        return str(path)
    return sys.executable if installed_release() == release else None


@cache
def installed_release() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("MNN")
    except metadata.PackageNotFoundError:
        return None


def run_mnn(python: str, folder: Path, *jobs: Job) -> list[Answer]:
    """What this interpreter's MNN answers, from one child process."""
    root, answer = folder / "jobs", folder / "answer.json"
    for number, job in enumerate(jobs):
        _write_job(root / str(number), job)
    command = [python, "-c", _CHILD, str(root), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    if not answer.is_file():
        raise RuntimeError(f"MNN stopped with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return [
        Answer([row[0] for row in rows], [bytes.fromhex(row[1]) for row in rows], prompts)
        for rows, prompts in json.loads(answer.read_text())
    ]


def _write_job(folder: Path, job: Job) -> None:
    folder.mkdir(parents=True)
    (folder / "llm.mnn").write_bytes(_MODEL)
    (folder / "llm.mnn.weight").write_bytes(bytes(16))
    (folder / "tokenizer.bin").write_bytes(job.tokenizer)
    config = {"llm_model": "llm.mnn", "llm_weight": "llm.mnn.weight", "tokenizer_file": "tokenizer.bin"}
    (folder / "config.json").write_text(json.dumps({**config, "backend_type": "cpu", "thread_num": 1}))
    inner = {"hidden_size": 8, "layer_nums": 1, "attention_mask": "float"}
    (folder / "llm_config.json").write_text(json.dumps(inner | ({"jinja": job.jinja} if job.jinja else {})))
    (folder / "job.json").write_text(json.dumps({"texts": list(job.texts), "chats": list(job.chats)}))
