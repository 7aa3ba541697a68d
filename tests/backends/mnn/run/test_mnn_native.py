"""Native MNN code in child processes: converter, runner, and environments of releases."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from backends.mnn.run.native import EXACT_CONFIG, RUNNER, json_to_mnn, mnn_to_json, run_child, run_model
from backends.mnn.target.environments import (
    FOLDER_VARIABLE,
    LLM_RELEASES,
    ReleaseEnvironments,
    default_folder,
    installed_version,
)
from ir.base.diag import LadingError
from tests.support.paths import ROOT

HIDDEN, VOCAB, HEADS = 8, 24, 2
PROMPT = [3, 1, 4, 1, 5, 9, 2]


def op(kind: str, inputs: list[int], output: int, main: tuple[str, dict] | None = None) -> dict:
    node = {"type": kind, "name": f"n{output}", "inputIndexes": inputs, "outputIndexes": [output]}
    node["defaultDimentionFormat"] = "NCHW"
    return node if main is None else {**node, "main_type": main[0], "main": main[1]}


def graph_input(index: int, dims: list[int], dtype: str = "DT_FLOAT") -> dict:
    return op("Input", [], index, ("Input", {"dims": dims, "dtype": dtype, "dformat": "NCHW"}))


def constant(index: int, values: list[int]) -> dict:
    blob = {"dims": [len(values)], "dataFormat": "NCHW", "dataType": "DT_INT32", "int32s": values}
    return op("Const", [], index, ("Blob", blob))


def reshape(source: int, target: int, dims: list[int]) -> dict:
    return op("Reshape", [source], target, ("Reshape", {"dims": dims, "dimType": "NCHW"}))


def tiny_net(head: np.ndarray) -> dict:
    """One attention with q = k = v = embedding, its output times `head` [VOCAB, HIDDEN]; last row or all rows."""
    size = HIDDEN // HEADS
    strided = {"Index": "DT_INT32", "T": "DT_FLOAT", "beginMask": 0, "endMask": 0, "ellipsisMask": 0}
    strided |= {"newAxisMask": 0, "shrinkAxisMask": 0, "fromType": 1}
    common = {"outputCount": VOCAB, "inputCount": HIDDEN, "kernelX": 1, "kernelY": 1, "strideX": 1, "strideY": 1}
    common |= {"dilateX": 1, "dilateY": 1, "group": 1, "padMode": "CAFFE"}
    conv = {"common": common, "weight": head.ravel().tolist(), "bias": [0.0] * VOCAB}
    nodes = [
        graph_input(0, [-1, 1, HIDDEN]),
        graph_input(1, []),
        graph_input(2, [1, -1], "DT_INT32"),
        graph_input(3, [1], "DT_INT32"),
        reshape(0, 4, [1, -1, HEADS, size]),
        op("Attention", [4, 4, 4, 1], 5, ("AttentionParam", {"kv_cache": True})),
        constant(6, [2147483647]),
        constant(7, [1]),
        op("StridedSlice", [5, 3, 6, 7, 7], 8, ("StridedSliceParam", strided)),
        reshape(8, 9, [-1, HIDDEN, 1, 1]),
        op("Convolution", [9], 10, ("Convolution2D", conv)),
        reshape(10, 11, [1, -1, VOCAB]),
    ]
    names = ["input_ids", "attention_mask", "position_ids", "logits_index", *(f"t{n}" for n in range(4, 11)), "logits"]
    return {"oplists": nodes, "tensorName": names, "sourceType": "CAFFE", "bizCode": "MNN"}


def expected_logits(embedding: np.ndarray, head: np.ndarray, ids: list[int]) -> np.ndarray:
    rows = embedding[ids].astype(np.float64).reshape(len(ids), HEADS, -1)
    scores = np.einsum("qhd,khd->hqk", rows, rows) / np.sqrt(rows.shape[-1])
    scores[:, np.triu_indices(len(ids), 1)[0], np.triu_indices(len(ids), 1)[1]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, rows).reshape(len(ids), -1) @ head.T


class Model:
    """A model directory that every LLM release loads, with the numbers it should give."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(7)
        bits = (rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        self.embedding = (bits.astype(np.uint32) << 16).view(np.float32)
        self.head = rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
        self.folder, self.config = folder, folder / "config.json"
        bits.tofile(folder / "embeddings_bf16.bin")
        (folder / "llm.mnn.weight").write_bytes(b"\0")
        json_to_mnn(tiny_net(self.head), folder / "llm.mnn")
        tokens = [*"abcdefgh", "ab", "\u00e4\u00b8", "\u0143", *(f"<{n}>" for n in range(13))]
        lines = ["430 3", "0 1 0", "23", f"{VOCAB} 1", *tokens, "a b"]
        (folder / "tokenizer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        llm = {"hidden_size": HIDDEN, "layer_nums": 1, "attention_mask": "float", "attention_type": "full"}
        template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        (folder / "llm_config.json").write_text(
            json.dumps({**llm, "jinja": {"chat_template": template, "eos": "<12>"}})
        )
        self.config.write_text(json.dumps({"llm_model": "llm.mnn", "llm_weight": "llm.mnn.weight"}))

    def logits(self, ids: list[int]) -> np.ndarray:
        return expected_logits(self.embedding, self.head, ids)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


def releases() -> list[tuple[str, Path]]:
    found = ReleaseEnvironments().available()
    return [("installed", Path(sys.executable)), *found.items()]


@pytest.fixture(params=releases(), ids=lambda pair: pair[0])
def interpreter(request: pytest.FixtureRequest) -> Path:
    return request.param[1]


# the converter


def test_conversion_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    net = tiny_net(np.ones((VOCAB, HIDDEN), np.float32))
    json_to_mnn(net, tmp_path / "a.mnn")
    json_to_mnn(json.dumps(net).encode(), tmp_path / "b.mnn")
    assert (tmp_path / "a.mnn").read_bytes() == (tmp_path / "b.mnn").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mnn", "b.mnn"]


def test_conversion_adds_no_identifier_and_keeps_a_given_one(tmp_path: Path) -> None:
    net = tiny_net(np.ones((VOCAB, HIDDEN), np.float32))
    json_to_mnn(net, tmp_path / "plain.mnn")
    json_to_mnn({**net, "mnn_uuid": "one"}, tmp_path / "named.mnn")
    assert "mnn_uuid" not in json.loads(mnn_to_json(tmp_path / "plain.mnn"))
    assert json.loads(mnn_to_json(tmp_path / "named.mnn"))["mnn_uuid"] == "one"


def test_floats_keep_all_their_digits(tmp_path: Path) -> None:
    head = np.full((VOCAB, HIDDEN), np.float32(1 / 3) * np.float32(1e-7))
    json_to_mnn(tiny_net(head), tmp_path / "a.mnn")
    assert head.tobytes() in (tmp_path / "a.mnn").read_bytes()


def test_dump_names_operators_and_tensors(tmp_path: Path) -> None:
    json_to_mnn(tiny_net(np.ones((VOCAB, HIDDEN), np.float32)), tmp_path / "a.mnn")
    net = json.loads(mnn_to_json(tmp_path / "a.mnn"))
    assert [node["type"] for node in net["oplists"]][4:6] == ["Reshape", "Attention"]
    assert net["tensorName"][-1] == "logits"


def code_of(action: object, *args: object, **options: object) -> LadingError:
    with pytest.raises(LadingError) as caught:
        action(*args, **options)  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize("text", [b"{", b"", b"no json"])
def test_bad_json_is_refused(tmp_path: Path, text: bytes) -> None:
    error = code_of(json_to_mnn, text, tmp_path / "a.mnn")
    assert error.code == "B661"
    assert "Invalid json" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_infinite_number_is_refused(tmp_path: Path) -> None:
    assert code_of(json_to_mnn, {"scale": float("inf")}, tmp_path / "a.mnn").code == "B661"


def test_unknown_union_crashes_the_converter_and_its_last_words_are_kept(tmp_path: Path) -> None:
    net = {"oplists": [{"type": "Input", "main_type": "Inpot", "main": {}}], "tensorName": ["a"]}
    error = code_of(json_to_mnn, net, tmp_path / "a.mnn")
    assert error.code == "B662"
    assert "SIGSEGV" in str(error)
    assert "Can't find union type" in str(error)


def test_unknown_field_is_an_error_and_not_dropped(tmp_path: Path) -> None:
    net = tiny_net(np.ones((VOCAB, HIDDEN), np.float32))
    net["oplists"][5]["main"]["not_a_field"] = 1
    error = code_of(json_to_mnn, net, tmp_path / "a.mnn")
    assert error.code == "B664"
    assert "not_a_field" in str(error)
    assert not (tmp_path / "a.mnn").exists()


def test_time_limit_of_the_converter(tmp_path: Path) -> None:
    net = tiny_net(np.ones((VOCAB, HIDDEN), np.float32))
    assert code_of(json_to_mnn, net, tmp_path / "a.mnn", timeout_s=0).code == "B663"


def test_missing_wheel(tmp_path: Path) -> None:
    """An interpreter without site packages: the base installation behind an environment made for this test."""
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / "bin" / "python"
    error = code_of(json_to_mnn, {"oplists": []}, tmp_path / "a.mnn", interpreter=bare)
    assert error.code == "B660"
    assert "_tools" in str(error)


def test_missing_mnn_file(tmp_path: Path) -> None:
    assert code_of(mnn_to_json, tmp_path / "none.mnn").code == "B665"


def test_damaged_mnn_file_is_a_coded_error(tmp_path: Path) -> None:
    (tmp_path / "bad.mnn").write_bytes(b"\xff" * 64)
    assert code_of(mnn_to_json, tmp_path / "bad.mnn").code in ("B661", "B662")


# children in general


def script(folder: Path, body: str) -> Path:
    path = folder / "child.py"
    path.write_text(textwrap.dedent(body))
    return path


def test_child_reads_its_request_and_returns_records_and_arrays(tmp_path: Path) -> None:
    body = """
        import json, os, sys
        import numpy as np
        folder = sys.argv[1]
        request = json.load(open(os.path.join(folder, "request.json")))
        given = np.load(os.path.join(folder, "inputs.npz"))["x"]
        np.savez(os.path.join(folder, "out.npz"), y=given * request["factor"])
        with open("results.jsonl", "w") as file:
            file.write(json.dumps({"here": os.path.samefile(os.getcwd(), folder)}) + "\\n")
        print("done")
    """
    result = run_child(script(tmp_path, body), {"factor": 3}, {"x": np.arange(4)}, timeout_s=30)
    assert (result.ok, result.exit_code, result.signal, result.timed_out) == (True, 0, None, False)
    assert result.records == ({"here": True},)
    np.testing.assert_array_equal(result.arrays["out/y"], [0, 3, 6, 9])
    assert result.log == "done"
    assert 0 < result.wall_s < 30


def test_crash_keeps_the_signal_the_log_and_complete_records(tmp_path: Path) -> None:
    body = """
        import os, signal, sys
        with open("results.jsonl", "w") as file:
            file.write('{"first": 1}\\n{"second": ')
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    """
    result = run_child(script(tmp_path, body), {}, timeout_s=30)
    assert (result.ok, result.exit_code, result.signal) == (False, None, "SIGABRT")
    assert result.records == ({"first": 1},)
    assert "last words" in result.log
    assert result.outcome == "crashed with SIGABRT"


def test_archive_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    body = """
        import os
        import numpy as np
        np.savez("whole.npz", x=np.arange(3))
        for name, size in (("empty.npz", 0), ("half.npz", os.path.getsize("whole.npz") // 2)):
            open(name, "wb").write(open("whole.npz", "rb").read()[:size])
        os.abort()
    """
    result = run_child(script(tmp_path, body), {}, timeout_s=30)
    assert list(result.arrays) == ["whole/x"]


def test_interpreter_may_be_a_relative_path_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for interpreter in (Path("../") / tmp_path.name / "here", "here"):
        assert run_child(script(tmp_path, "pass"), {}, interpreter=interpreter, timeout_s=30).ok


def test_exit_code_is_a_result(tmp_path: Path) -> None:
    result = run_child(script(tmp_path, "raise SystemExit(7)"), {}, timeout_s=30)
    assert (result.ok, result.exit_code, result.outcome) == (False, 7, "left with exit code 7")


def test_time_limit_kills_the_whole_group(tmp_path: Path) -> None:
    body = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        time.sleep(60)
    """
    result = run_child(script(tmp_path, body), {}, timeout_s=2)
    assert result.timed_out and not result.ok
    assert result.signal == signal.SIGKILL.name
    assert 2 <= result.wall_s < 20
    state = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    deadline = time.monotonic() + 10
    while alive(state) and time.monotonic() < deadline:  # the signal was sent; the kernel may still be at it
        time.sleep(0.01)
    assert not alive(state)


def alive(stat: Path) -> bool:
    """A killed orphan stays as a zombie where nobody reaps it."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_memory_limit(tmp_path: Path) -> None:
    body = "import numpy as np; np.ones(1 << 30, np.uint8)"
    assert run_child(script(tmp_path, body), {}, timeout_s=30).ok
    limited = run_child(script(tmp_path, body), {}, timeout_s=30, memory_limit=1 << 30)
    assert not limited.ok
    assert "MemoryError" in limited.log


PEAKS = """
import sys
from pathlib import Path
import numpy as np
from backends.mnn.run.native import run_child

ballast = np.ones(300 << 20, np.uint8)
for name in sys.argv[1:]:
    print(run_child(Path(name), {}, timeout_s=60).peak_rss)
assert ballast[0] == 1
"""


def test_peak_memory_is_the_childs_and_not_ours(tmp_path: Path) -> None:
    # In a fresh process: what this one has used before is unknown, and the kernel counts it for a child.
    small, big = tmp_path / "small.py", tmp_path / "big.py"
    small.write_text("pass")
    big.write_text("import numpy as np; np.ones(900 << 20, np.uint8)")
    command = [sys.executable, "-c", PEAKS, str(small), str(big)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True)
    printed = ended.stdout.split()
    assert printed[0] == "None" or int(printed[0]) < 100 << 20
    assert 900 << 20 < int(printed[1]) < 1100 << 20


def test_missing_interpreter(tmp_path: Path) -> None:
    error = code_of(run_child, script(tmp_path, "pass"), {}, interpreter=tmp_path / "no-python", timeout_s=5)
    assert error.code == "B666"


# the runner, on every release there is


def test_runner_is_python_3_8_and_imports_nothing_of_ours() -> None:
    tree = ast.parse(RUNNER.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported.isdisjoint({"ir", "passes", "frontends", "backends", "tools"})


def test_forward_gives_the_right_logits_in_any_pieces(model: Model, interpreter: Path) -> None:
    ids = [*PROMPT, 6, 5, 3, 5]
    pieces = [[ids], [PROMPT, [6], [5], [3], [5]], [ids[:3], ids[3:9], ids[9:]]]
    actions = [{"do": "forward", "pieces": cut} for cut in pieces]
    run = run_model(model.config, actions, interpreter=interpreter, timeout_s=60).require()
    for result, cut in zip(run.results, pieces, strict=True):
        assert result is not None
        assert [len(part) for part in result["logits"]] == [len(part) for part in cut]
        np.testing.assert_allclose(np.concatenate(result["logits"]), model.logits(ids), atol=1e-5)
        assert result["argmax"][-1] == model.logits(ids)[-1].argmax()


def greedy_ids(model: Model, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_greedy_and_the_runtimes_own_generation_agree(model: Model, interpreter: Path) -> None:
    action = {"prompt": PROMPT, "tokens": 6}
    actions = [{"do": "greedy", **action, "keep": "last"}, {"do": "generate", **action}, {"do": "greedy", **action}]
    run = run_model(model.config, actions, interpreter=interpreter, timeout_s=60).require()
    first, own, again = (result or {} for result in run.results)
    wanted = greedy_ids(model, PROMPT, 6)
    assert first["ids"] == own["ids"] == again["ids"] == wanted
    assert [part.shape for part in first["logits"]] == [(1, VOCAB)] * 6
    assert again["logits"] == []
    assert own["decode_s"] >= 0


def test_generated_text_that_is_no_utf_8_does_not_crash(model: Model, interpreter: Path, tmp_path: Path) -> None:
    """Every token is two of the three bytes of a character."""
    folder = shutil.copytree(model.folder, tmp_path / "model")
    lines = ["430 3", "0 1 0", "23", f"{VOCAB} 1", *["\u00e4\u00b8"] * VOCAB, "a b"]
    (folder / "tokenizer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    actions = [{"do": "generate", "prompt": PROMPT, "tokens": 4}]
    run = run_model(folder / "config.json", actions, interpreter=interpreter, timeout_s=60).require()
    own = run.results[0] or {}
    assert own["ids"] == greedy_ids(model, PROMPT, 4) and own["prefill_s"] > 0


def test_greedy_stops_at_a_stop_id(model: Model) -> None:
    wanted = greedy_ids(model, PROMPT, 6)
    stop = wanted[2]
    run = run_model(model.config, [{"do": "greedy", "prompt": PROMPT, "tokens": 6, "stop": [stop]}]).require()
    assert (run.results[0] or {})["ids"] == wanted[: wanted.index(stop) + 1]


def test_texts_and_bytes_survive(model: Model, interpreter: Path) -> None:
    actions = [
        {"do": "encode", "texts": ["abc", b"ba", "a\0b", ""]},
        {"do": "decode", "ids": [[8, 2], [9, 10], [9]]},
        {"do": "chat_template", "chats": [[{"role": "user", "content": "hi"}]]},
    ]
    run = run_model(model.config, actions, interpreter=interpreter, timeout_s=60).require()
    encoded, decoded, chats = (result or {} for result in run.results)
    assert encoded["ids"] == [[8, 2], [1, 0], None, []]
    assert decoded["texts"] == [b"abc", "\u4e2d".encode()[:2] + b"\xad", "\u4e2d".encode()[:2]]
    assert chats["prompts"] == ["[user]hi"]


def test_bench_and_load_report_times_and_memory(model: Model) -> None:
    run = run_model(model.config, [{"do": "bench", "prompt": PROMPT, "tokens": 5, "repeat": 2}]).require()
    bench = run.results[0] or {}
    assert (len(bench["prefill_s"]), len(bench["decode_s"])) == (2, 10)
    assert bench["prefill_tokens_per_s"] == pytest.approx(len(PROMPT) / np.median(bench["prefill_s"]))
    assert bench["decode_tokens_per_s"] == pytest.approx(1 / np.median(bench["decode_s"]))
    assert run.load["version"] == installed_version()
    assert 0 < run.load["rss_before"] <= run.load["rss"] <= run.load["peak_rss"]
    assert run.load["load_s"] > 0


def test_set_config_and_bench_leave_the_settings_as_they_were_asked(model: Model) -> None:
    forward = {"do": "forward", "pieces": [PROMPT]}
    bench = {"do": "bench", "prompt": PROMPT, "tokens": 1, "repeat": 1}
    actions = [bench, forward, {"do": "set_config", "config": {"all_logits": False}}, forward]
    run = run_model(model.config, actions, overrides=EXACT_CONFIG).require()
    rows = [len(run.results[number]["logits"][0]) for number in (1, 3)]  # type: ignore[index]
    assert rows == [len(PROMPT), 1]


def test_crash_of_the_runtime_keeps_earlier_results(model: Model) -> None:
    """Its tokenizer throws through its own frames when a byte is not in the vocabulary."""
    actions = [{"do": "forward", "pieces": [PROMPT]}, {"do": "encode", "texts": ["z"]}]
    run = run_model(model.config, [*actions, actions[0]])
    assert run.loaded and run.child.signal == "SIGABRT"
    assert "do_encode" in run.child.log
    np.testing.assert_allclose(run.results[0]["logits"][0], model.logits(PROMPT), atol=1e-5)  # type: ignore[index]
    assert run.results[1:] == (None, None)
    assert run.failure == "the process crashed with SIGABRT in action 1 (encode)"
    assert code_of(run.require).code == "B667"


def test_error_of_an_action_does_not_stop_the_rest(model: Model) -> None:
    run = run_model(model.config, [{"do": "forward", "pieces": [["x"]]}, {"do": "forward", "pieces": [PROMPT]}])
    assert "ValueError" in run.results[0]["error"]  # type: ignore[index]
    assert len(run.results[1]["logits"]) == 1  # type: ignore[index]
    assert code_of(run.require, "here").code == "B669"


def test_time_limit_of_the_runtime(model: Model) -> None:
    action = {"do": "greedy", "prompt": PROMPT, "tokens": 10**9}
    run = run_model(model.config, [{"do": "forward", "pieces": [PROMPT]}, action], timeout_s=3)
    assert run.results[0] is not None and run.results[1] is None
    assert code_of(run.require).code == "B668"


def test_failed_load_is_named(model: Model, interpreter: Path, tmp_path: Path) -> None:
    for path in model.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "llm.mnn").write_bytes(b"\0" * 64)
    run = run_model(tmp_path / "config.json", [{"do": "forward", "pieces": [PROMPT]}], interpreter=interpreter)
    assert not run.loaded
    assert (run.failure or "").startswith("loading failed")
    assert code_of(run.require).code == "B667"


def test_unknown_action_is_the_callers_mistake(model: Model) -> None:
    with pytest.raises(ValueError, match="dance"):
        run_model(model.config, [{"do": "dance"}])


# environments of releases


def make_environment(folder: Path, version: str, *, record: bool = True) -> Path:
    python = folder / f"mnn-{version}" / "bin" / "python"
    packages = folder / f"mnn-{version}" / "lib" / "python3.11" / "site-packages"
    for path in (python.parent, packages / "MNN", packages / "numpy", packages / f"mnn-{version}.dist-info"):
        path.mkdir(parents=True)
    python.symlink_to(sys.executable)
    if record:
        (packages / f"mnn-{version}.dist-info" / "RECORD").touch()
    return python


def test_environment_is_found_by_its_metadata(tmp_path: Path) -> None:
    python = make_environment(tmp_path, "3.5.0")
    environments = ReleaseEnvironments(tmp_path)
    assert environments.find("3.5.0") == environments.ensure("3.5.0") == python
    assert environments.find("3.6.1") is None
    assert environments.available() == {"3.5.0": python}


def test_half_made_or_foreign_environment_is_not_found(tmp_path: Path) -> None:
    make_environment(tmp_path, "3.5.0", record=False)
    make_environment(tmp_path, "3.4.0").parents[1].rename(tmp_path / "mnn-3.4.1")
    environments = ReleaseEnvironments(tmp_path)
    for version in ("3.5.0", "3.4.1"):
        assert environments.find(version) is None
        assert code_of(environments.ensure, version).code == "B671"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_release_that_cannot_be_installed_leaves_nothing_behind(tmp_path: Path, no_network: None) -> None:
    error = code_of(ReleaseEnvironments(tmp_path / "envs").ensure, "3.4.0")
    assert error.code == "B670"
    assert "3.4.0" in str(error)
    assert list((tmp_path / "envs").iterdir()) == []


def test_environment_made_by_somebody_else_meanwhile_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(environment: Path, version: str, timeout_s: float) -> None:
        assert environments.find(version) is None
        made = make_environment(environment.parent / "made", version).parents[1]
        made.rename(environment)
        make_environment(tmp_path, version)

    environments = ReleaseEnvironments(tmp_path)
    monkeypatch.setattr("backends.mnn.target.environments._install", install)
    assert environments.ensure("3.6.0") == tmp_path / "mnn-3.6.0" / "bin" / "python"
    assert [path.name for path in tmp_path.iterdir()] == ["mnn-3.6.0"]


def test_new_environment_gets_its_place_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(environment: Path, version: str, timeout_s: float) -> None:
        make_environment(environment.parent / "made", version).parents[1].rename(environment)
        assert environments.find(version) is None

    environments = ReleaseEnvironments(tmp_path / "deep" / "envs")
    monkeypatch.setattr("backends.mnn.target.environments._install", install)
    assert environments.ensure("3.6.0") == environments.path("3.6.0") / "bin" / "python"
    assert [path.name for path in environments.folder.iterdir()] == ["mnn-3.6.0"]


def test_default_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_folder() == tmp_path / "cache" / "lading" / "mnn"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path.home() / ".cache" / "lading" / "mnn"


def test_releases_are_in_order() -> None:
    assert list(LLM_RELEASES) == sorted(LLM_RELEASES, key=lambda text: [int(part) for part in text.split(".")])


def test_nothing_native_is_imported() -> None:
    code = (
        "import sys, backends.mnn.run.native, backends.mnn.target.environments as r; r.installed_version();"
        " print([m for m in ('MNN', '_tools', '_mnncengine') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
