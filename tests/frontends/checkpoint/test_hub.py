"""Where models live: folders, files that are none, and the hub with its failures (no network is used)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from frontends.checkpoint import hub
from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.facts.model_card import ModelCard
from tests.support.checkpoints import make_checkpoint


def test_places_that_are_no_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    (tmp_path / "empty").mkdir()
    for name in ("pytorch_model.bin", "a.gguf", "model.onnx"):
        other = tmp_path / name.replace(".", "-")
        other.mkdir()
        (other / name).touch()
    (tmp_path / "a-gguf" / "b.gguf").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"\0" * 8)
    codes = {
        tmp_path / "absent": "F500",
        "no-such-model": "F500",
        "a/b/c": "F500",
        "": "F500",
        "\0": "F500",
        "x" * 5000: "F500",
        folder / "config.json": "F501",
        tmp_path / "empty": "F502",
        tmp_path / "pytorch_model-bin": "F502",
        tmp_path / "a-gguf": "F502",
        tmp_path / "absent.gguf": "F510",
        tmp_path / "a-gguf" / "b.gguf": "F583",
        tmp_path / "model-onnx": "F502",
        tmp_path / "bare": "F503",
    }
    for model, code in codes.items():
        with pytest.raises(LadingError) as caught:
            hub.resolve(model)
        assert caught.value.code == code, model
    with pytest.raises(LadingError, match="give one of them instead of the folder"):
        hub.resolve(tmp_path / "a-gguf")
    with pytest.raises(LadingError, match=r"give the \.onnx file itself"):
        hub.resolve(tmp_path / "model-onnx")


def test_folder_has_no_revision(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    assert hub.resolve(folder) == folder
    with pytest.raises(LadingError) as caught:
        hub.resolve(folder, revision="main")
    assert caught.value.code == "F509"


def test_home_and_relative_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "owner" / "model", "llama")
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("owner/model") == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/owner/model") == folder


def test_cached_repository_is_used_without_a_network(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    make_checkpoint(repository / "snapshots" / commit, "llama")
    graph = load("owner/name", cache_dir=tmp_path, offline=True)
    assert ModelCard.of(graph).title == "owner/name"
    assert hub.resolve("owner/name", cache_dir=tmp_path, offline=True, revision=commit).name == commit


def test_repository_that_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(LadingError) as caught:
        hub.resolve("owner/name", cache_dir=tmp_path, offline=True)
    assert caught.value.code == "F506"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("RepositoryNotFoundError", "F504"),
        ("GatedRepoError", "F505"),
        ("LocalEntryNotFoundError", "F506"),
        ("OfflineModeIsEnabled", "F507"),
        ("HfHubHTTPError", "F507"),
        ("RevisionNotFoundError", "F508"),
        ("HFValidationError", "F500"),
    ],
)
def test_failures_of_the_hub(monkeypatch: pytest.MonkeyPatch, error: str, code: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    asked: dict[str, Any] = {}

    def fail(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        kind = getattr(errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(LadingError) as caught:
        hub.resolve("owner/name", revision="v1")
    assert caught.value.code == code
    assert (asked["name"], asked["revision"]) == ("owner/name", "v1")
    assert not any(pattern.endswith((".py", ".bin")) for pattern in asked["allow_patterns"])
    assert {"*.py", "*.bin"} <= set(asked["ignore_patterns"])


def test_downloaded_folder_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    with pytest.raises(LadingError) as caught:
        hub.resolve("owner/name")
    assert caught.value.code == "F502"
    assert caught.value.diagnostics[0].where == "owner/name"
