"""The benchmarks of quality: arguments, texts, tables, one short measurement, and the trainer on a handful of steps."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import calibrated, quality, train_checkpoints
from ir.facts.model_card import ModelCard
from tests.support.paths import EXAMPLE

EXPORTER = ["--mnn-checkout", "MNN", "--torch-python", "python"]


def result(weight: int, kl: float, wall: float = 1.0) -> dict:
    """A result as `quality.try_method` gives it."""
    measured = {
        "positions": 10, "kl": kl, "kl_error": kl / 10, "top1": 0.95, "perplexity": 9.5, "perplexity_reference": 9.25,
        "nll_error": 0.001,
    }  # fmt: skip
    files = {"llm.mnn": 1000, "llm.mnn.weight": weight, "embeddings_bf16.bin": 500, "tokenizer.mtok": 7}
    times = {"wall_s": wall, "cpu_s": 2 * wall, "load": 0.5, "peak_tree": 5}
    return {"command": "x", **times, "files": files, "exact": measured, "shipped": measured}


def test_arguments_have_the_texts_of_the_checkpoint():
    args = quality.parse_arguments([str(EXAMPLE), *EXPORTER])
    assert (args.text, args.calibration) == (EXAMPLE / "evaluation.txt", EXAMPLE / "calibration.txt")
    assert args.official == list(quality.OFFICIAL)
    assert quality.parse_arguments([str(EXAMPLE), *EXPORTER, "--official", ""]).official == []


@pytest.mark.parametrize(
    "options", [["--text", "nowhere.txt"], ["--window", "1"], ["--windows", "-1"], ["--passage", "-5"]]
)
def test_wrong_arguments_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        quality.parse_arguments([str(EXAMPLE), *EXPORTER, *options])
    assert options[0].lstrip("-") in capsys.readouterr().err or "nowhere.txt" in options


def test_methods():
    given = quality.lading_methods(["a = int4 --target 3.6.1", "b=tool {out} --x=1"])
    assert [method.name for method in given] == ["a", "b"]
    assert given[0].template.endswith("--passes  int4 --target 3.6.1")
    assert given[1].template == "tool {out} --x=1"
    assert [method.name for method in quality.lading_methods([])] == list(quality.LADING)
    for wrong in ("int4", "=int4", "name="):
        with pytest.raises(SystemExit, match="is not NAME="):
            quality.lading_methods([wrong])
    with pytest.raises(SystemExit, match="no official mode 'gptq'"):
        quality.official_methods(["hqq", "gptq"])


def test_commands_are_filled_in(tmp_path):
    places = quality.Places(quality.parse_arguments([str(EXAMPLE), *EXPORTER]), tmp_path)
    plain, smooth = quality.official_methods(["int4-head8", "smooth-head8"])
    words = places.fill(plain, tmp_path / "out")
    assert words[words.index("--path") + 1] == str(EXAMPLE)
    assert not (tmp_path / "float32").exists()
    words = places.fill(smooth, tmp_path / "out")
    assert words[words.index("--path") + 1] == str(tmp_path / "float32")
    assert Path(words[words.index("--calib_data") + 1]).read_text().startswith("#")
    mixed = quality.lading_methods(["mixed=mixed --max-size {weight[int4-head8]}"])[0]
    with pytest.raises(SystemExit, match="int4-head8"):
        places.fill(mixed, tmp_path / "out")
    places["weight"]["int4-head8"] = 12345
    assert places.fill(mixed, tmp_path / "out")[-1] == "12345"
    with pytest.raises(SystemExit, match="nothing is called"):
        places.fill(quality.lading_methods(["x=run {out} {nothing}"])[0], tmp_path / "out")


def test_passages_are_lines_of_about_one_size():
    text = "first line\n\n  second line\nthird\n" + "x" * 50
    assert quality.passages(text, 0) == ["first line", "  second line", "third", "x" * 50]
    assert quality.passages(text, 30) == ["first line   second line third", "x" * 50]


def test_windows_lie_over_the_whole_text():
    ids = list(range(100))
    windows = quality.cut_windows(ids, 10, 4)
    assert [window[0] for window in windows] == [0, 30, 60, 90]
    assert quality.cut_windows(ids, 30, 0) == [ids[0:30], ids[35:65], ids[70:100]]
    assert quality.cut_windows(ids, 30, 50) == quality.cut_windows(ids, 30, 0)
    assert quality.cut_windows(ids, 60, 7) == [ids[:60]]
    with pytest.raises(SystemExit, match="100 tokens"):
        quality.cut_windows(ids, 101, 1)


def test_a_widened_checkpoint_is_the_same(tmp_path):
    from safetensors.torch import load_file

    torch = pytest.importorskip("torch")
    wide = quality.widen(EXAMPLE, tmp_path)
    before, after = load_file(EXAMPLE / "model.safetensors"), load_file(wide / "model.safetensors")
    assert list(before) == list(after)
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    for name, tensor in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], tensor.float())
    assert json.loads((wide / "config.json").read_text())["dtype"] == "float32"
    assert (wide / "tokenizer.json").read_bytes() == (EXAMPLE / "tokenizer.json").read_bytes()


def test_table_is_ordered_by_size_and_names_failures():
    methods = {
        "official int8": result(4_000_000, 0.0001),
        "Lading mixed": result(2_000_000, 0.005, 2.25),
        "official awq": {"command": "y", "error": "RuntimeError: shapes"},
    }
    lines = quality.table({"methods": methods}).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2].startswith(
        "| Lading mixed | 2.2 | 4.5 | 2.001 | 2.002 | 2.002 | 0.00500 ± 0.00050 | 95.00 | 9.500 |"
    )
    assert lines[3].startswith("| official int8 |")
    assert lines[4] == "| official awq | failed: RuntimeError: shapes |"
    assert lines[-1] == "float model: perplexity 9.250"


def test_results_of_something_else_are_not_mixed_in(tmp_path):
    path = tmp_path / "results.json"
    head = {"checkpoint": "a", "window": 256}
    assert quality.read_results(path, head) == {**head, "methods": {}}
    path.write_text(json.dumps({**head, "methods": {"official int8": result(1, 0.1)}}))
    assert list(quality.read_results(path, head)["methods"]) == ["official int8"]
    with pytest.raises(SystemExit, match="another window"):
        quality.read_results(path, {**head, "window": 128})


def test_one_method_is_compiled_measured_and_kept(tmp_path, monkeypatch, capsys):
    pytest.importorskip("MNN")
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "cache"))
    options = [str(EXAMPLE), *EXPORTER, "--official", "", "--windows", "2", "--window", "32"]
    options += ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "results.json")]
    options += ["--lading", "int8=int8", "--lading", "broken={python} -c 'raise SystemExit(\"no {out}\")'"]
    quality.main(options)
    first = json.loads((tmp_path / "results.json").read_text())
    found = first["methods"]["Lading int8"]
    assert found["exact"]["positions"] == 64
    assert 0 < found["exact"]["kl"] < 0.001 < found["shipped"]["kl"] + 0.001
    assert found["files"]["llm.mnn.weight"] > 3_000_000
    assert first["methods"]["Lading broken"]["error"].startswith("no WORK")
    capsys.readouterr()
    quality.main(options)
    ran = capsys.readouterr()
    assert "..." not in ran.err
    assert "| Lading int8 |" in ran.out


def test_calibrated_commands_and_limits(tmp_path, capsys):
    options = [str(EXAMPLE), "--calibration", str(EXAMPLE / "calibration.txt"), "--budget", "5bpw"]
    args = calibrated.parse_arguments([*options, "--most-seconds", "3", "--most-megabytes", "100"])
    words = calibrated.command(args, tmp_path)
    assert words[-2:] == ["--budget", "5bpw"]
    assert str(tmp_path) in words
    args.command = "run {weight}"
    with pytest.raises(SystemExit, match="nothing is called 'weight'"):
        calibrated.command(args, tmp_path)
    results = {
        state: {key: [2.5, 4.0 if state == "first" else 1.0] for _, _, _, key in calibrated.ROWS}
        for state in calibrated.STATES
    }
    assert calibrated.above(results, args) == ["4.0 s are more than 3 s"]
    args.most_seconds, args.most_megabytes = None, 0
    assert calibrated.above(results, args) == ["0 MB are more than 0 MB"]
    assert "3.25 (2.50 to 4.00)" in calibrated.table(results)
    for wrong in (["--runs", "0"], ["--calibration", "nowhere.txt"]):
        with pytest.raises(SystemExit):
            calibrated.parse_arguments([*options, *wrong])
    assert "nowhere.txt" in capsys.readouterr().err


def test_calibrated_runs_with_an_empty_and_a_filled_cache(tmp_path):
    code = "import os,pathlib,sys; p=pathlib.Path(os.environ['LADING_CACHE']); q=pathlib.Path(sys.argv[1]); q.mkdir();"
    code += "(q/'x').write_bytes(b'x'*(3 if p.exists() else 1)); p.mkdir(exist_ok=True); (p/'y').write_bytes(b'yy')"
    options = [str(EXAMPLE), "--calibration", str(EXAMPLE / "calibration.txt"), "--runs", "2"]
    args = calibrated.parse_arguments([*options, "--command", f'{{python}} -c "{code}" {{out}}'])
    record = calibrated.run_rounds(args, tmp_path)
    assert (record["output_bytes"], record["cache_bytes"]) == (3, 2)
    assert [len(record["results"][state]["wall_s"]) for state in calibrated.STATES] == [2, 2]


def library(folder: Path) -> Path:
    """Python files enough for all three texts."""
    for number in range(200):
        path = folder / f"module_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"def function_{number}_{line}(x):\n    return x + {line}\n" for line in range(12)))
    (folder / "broken.py").write_bytes(b"\xff\xfe\x00")
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "other.py").write_text("left out")
    return folder


def test_no_file_is_in_two_texts(tmp_path):
    found = train_checkpoints.texts(library(tmp_path))
    everything = [text for files in found.values() for text in files]
    assert len(everything) == len(set(everything)) == 200
    assert len(found["train"]) > 150 and found["calibration"] and found["evaluation"]
    assert train_checkpoints.held_out(found["evaluation"], 3) == train_checkpoints.held_out(found["evaluation"], 3)
    with pytest.raises(SystemExit, match="too few"):
        train_checkpoints.texts(tmp_path / "site-packages")


def test_learning_rate_rises_then_falls_to_nothing():
    rates = [train_checkpoints.learning_rate(step, 100, 1.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates.index(max(rates)) in (4, 5) and max(rates) == pytest.approx(1.0)
    assert all(before > after for before, after in pairwise(rates[5:]))
    assert rates[-1] == pytest.approx(0.0)


def test_training_lowers_the_loss_and_repeats(tmp_path):
    pytest.importorskip("torch")
    from frontends.checkpoint.load import load

    source = library(tmp_path / "library")
    options = ["--family", "llama", "--library", str(source), "--vocab", "300", "--hidden", "64", "--layers", "1"]
    options += ["--context", "16", "--batch", "4", "--steps", "8", "--no-bfloat16"]
    values, weights = [], []
    for name in ("a", "b"):
        values.append(train_checkpoints.make(train_checkpoints.parse_arguments([str(tmp_path / name), *options])))
        weights.append((tmp_path / name / "llama" / "model.safetensors").read_bytes())
    assert values[0] == values[1] < 250
    assert weights[0] == weights[1]
    graph = load(tmp_path / "a" / "llama")
    assert ModelCard.of(graph).context == 2048
    assert (tmp_path / "a" / "llama" / "evaluation.txt").read_text().startswith("def function_")


def test_sizes_that_do_not_fit_are_refused(tmp_path, capsys):
    for wrong in (["--hidden", "100"], ["--vocab", "20"]):
        with pytest.raises(SystemExit):
            train_checkpoints.parse_arguments([str(tmp_path), "--family", "llama", *wrong])
        assert wrong[0] in capsys.readouterr().err
