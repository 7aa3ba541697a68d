"""Packages that not every command needs: their absence is told with the extra that brings them."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ir.base.diag import LadingError
from tests.support.paths import ROOT
from tools.main import main
from tools.shared import cli
from tools.shared.cli import EXIT_FAILED, EXTRAS, guarded, require_package


def test_a_package_that_is_there_is_not_imported():
    require_package("click")
    require_package("json")


def test_the_extra_of_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(EXTRAS, "no_such_package", "matrix")
    with pytest.raises(LadingError) as error:
        require_package("no_such_package")
    assert error.value.code == "U997" and "pip install 'lading[matrix]'" in str(error.value)


def test_extras_are_those_of_the_project():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(item.startswith(package) for item in extras[extra]), package


def test_matrix_asks_for_what_it_needs_before_it_works(monkeypatch, tmp_path):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else found(name, *rest)
    )
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["matrix"])
    assert result.exit_code == EXIT_FAILED
    assert "error[U997]: this command needs the package 'transformers', which is not installed" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "code"), [("nowhere_to_be_found", "U997"), ("backends.mnn.gone", "U996"), ("tools", "U996")]
)
def test_an_import_that_fails_inside_a_command_is_no_fault_of_the_program(module, code, capsys):
    def action() -> int:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    assert guarded(action, False) == EXIT_FAILED
    assert f"error[{code}]: " in capsys.readouterr().err


def test_every_known_extra_is_a_hint():
    for package, extra in EXTRAS.items():
        assert f"lading[{extra}]" in cli.package_missing(package).diagnostics[0].hint
