"""Text that is made from a template file: pages and C++ lie beside the module that fills them in, not inside it."""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(module: str, name: str, /, **values: Any) -> str:
    """A Jinja template, filled in.

    Text is escaped in templates whose name ends with ``.html.jinja``, except what is `markupsafe.Markup` already.
    Blocks that stand alone on a line leave no line behind.

    Args:
        module: ``__file__`` of a module in the template's folder.
        name: file name of the template.
        values: what the template asks for.

    Raises:
        jinja2.TemplateError: a template that is not there or that asks for a value it does not get.
    """
    return _environment(Path(module).parent).get_template(name).render(values)


@cache
def _environment(folder: Path) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_eval_context, select_autoescape
    from markupsafe import Markup

    @pass_eval_context
    def escaped(context: Any, value: Any) -> Any:
        # Quotes get the names that `html.escape` gives them, as in the parts that are made in Python.
        return Markup(html.escape(str(value))) if context.autoescape and not hasattr(value, "__html__") else value

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        finalize=escaped,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
