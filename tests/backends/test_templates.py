"""Templates: what is escaped, what is refused, what an installation contains."""

from __future__ import annotations

import tomllib
from html import escape

import jinja2
import pytest
from markupsafe import Markup

from backends.templates import render
from tests.support.paths import ROOT

BAD = "<b>&\"'"


@pytest.fixture
def module(tmp_path) -> str:
    """``__file__`` of a module beside which lie a page and a text that hold one value."""
    (tmp_path / "page.html.jinja").write_text("<p>{{ value }}</p>\n{% if value %}\nmore\n{% endif %}\n")
    (tmp_path / "header.h.jinja").write_text('"{{ value }}"\n')
    return str(tmp_path / "module.py")


def test_pages_escape_as_the_standard_library_does_and_other_text_stays(module):
    assert render(module, "page.html.jinja", value=BAD) == f"<p>{escape(BAD)}</p>\nmore\n"
    assert render(module, "page.html.jinja", value=Markup("<i>")) == "<p><i></p>\nmore\n"
    assert render(module, "page.html.jinja", value=0) == "<p>0</p>\n"
    assert render(module, "header.h.jinja", value=BAD) == f'"{BAD}"\n'


@pytest.mark.parametrize("name", ["page.html.jinja", "header.h.jinja"])
def test_a_value_that_is_not_given_is_an_error(module, name):
    with pytest.raises(jinja2.UndefinedError, match="value"):
        render(module, name)


def test_every_template_lies_in_a_package_and_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "*.jinja" in settings["package-data"]["*"]
    packages = [pattern.rstrip("*") for pattern in settings["packages"]["find"]["include"]]
    found = [path.relative_to(ROOT) for name in packages for path in (ROOT / name).rglob("*.jinja")]
    assert found
    assert [path for path in found if not (ROOT / path.parent / "__init__.py").is_file()] == []
