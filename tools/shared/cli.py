"""What all commands share: options, the screen, exit codes, and how errors are shown."""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.base.diag import Diagnostic, LadingError
from ir.base.interrupts import Stopped, raising_signals
from ir.base.whole_files import forget_written, written
from tools.shared.streams import give_up_output, ready_streams

if TYPE_CHECKING:
    from rich.console import Console

    from tools.compile.job import Listener

EXIT_FAILED = 1
"""The input, the machine or the result was not good enough; a coded message says why."""

EXIT_USAGE = 2
"""The command line itself was wrong."""

EXIT_FAULT = 3
"""The program itself is at fault; a report was written."""

EXIT_UNPROVEN = 4
"""The result was written, and what it should have been compared with could not be run."""

EXIT_INTERRUPTED = 130
"""Stopped from the keyboard; another signal gives 128 and its number."""

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
QUIET_OPTION = click.option("--quiet", "-q", is_flag=True, help="Print errors only.")


class Number(click.FloatRange):
    """A number in a range, as an option's type; NaN and infinity, which ranges let pass, are none."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the usual error of a wrong option."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


class FolderOr(click.Path):
    """A folder that is there, or a word, as an option's type; a folder of that name is written ``./word``."""

    def __init__(self, word: str) -> None:
        super().__init__(path_type=Path, file_okay=False, exists=True)
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder or the word, or the usual error of a wrong option."""
        return value if value == self.word else super().convert(value, param, ctx)


class Screen:
    """Where a command prints: results on standard output, progress and errors on standard error."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet

    @functools.cached_property
    def console(self) -> Console:
        """Standard output with colours where it is a terminal."""
        from rich.console import Console

        class Output(Console):
            def on_broken_pipe(self) -> None:
                """Let the command say what is there; the console would leave the program."""
                raise BrokenPipeError

        return Output(highlight=False, soft_wrap=False)

    @functools.cached_property
    def errors(self) -> Console:
        """Standard error likewise."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=False)

    def data(self, data: Any, text: str) -> None:
        """Print a result: JSON or text."""
        click.echo(json.dumps(data, indent=2, ensure_ascii=False) if self.as_json else text)

    @contextmanager
    def progress(self) -> Iterator[Listener]:
        """A listener that draws on standard error where it is a terminal, and else tells a line now and then."""
        from tools.compile.job import Listener

        if self.as_json or self.quiet:
            yield Listener()
            return
        from tools.shared.progress import drawn_progress, plain_progress

        if sys.stderr.isatty():
            from rich.console import Console

            # Room for the ^C that terminals echo behind the line, which would be left there if it broke the line.
            console = Console(stderr=True, width=max(20, Console(stderr=True).width - 3))
            if not console.is_dumb_terminal:
                with drawn_progress(console) as listener:
                    yield listener
                return
        with plain_progress(lambda line: click.echo(line, err=True)) as listener:
            yield listener


def command(name: str) -> Callable[[Callable[..., int]], click.Command]:
    """A click command whose function returns an exit code and whose LadingErrors are printed, not traced."""

    def decorate(function: Callable[..., int]) -> click.Command:
        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            sys.exit(guarded(lambda: function(**arguments), bool(arguments.get("as_json"))))

        return click.command(name, context_settings={"help_option_names": ["-h", "--help"]})(run)

    return decorate


def guarded(action: Callable[[], int], as_json: bool) -> int:
    """Run an action and turn what users can cause into messages and exit codes."""
    ready_streams()
    forget_written()
    for stream in (sys.stdout, sys.stderr):
        # Names in files may hold halves of characters, which no encoding has.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with raising_signals():
            code = action()
            sys.stdout.flush()
        return code
    except LadingError as error:
        return _told(error, as_json)
    except MemoryError as error:
        hint = "close other programs, or give the machine more memory"
        return _told(LadingError("U908", f"there is not enough memory: {error}", hint=hint), as_json)
    except KeyboardInterrupt as stop:
        return stopped(stop)
    except BrokenPipeError:
        give_up_output()
        if written():
            _say(f"standard output was closed early; {_what_is_there()}")
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        return _told(package_missing(error.name or str(error)), as_json)
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        hint = _REMEDIES.get(error.errno or 0, "")
        return _told(LadingError("U902", f"the system refused: {error.strerror or error}", where, hint), as_json)
    except (SystemExit, click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except BaseException as error:  # Panics of foreign libraries are no Exception.
        return _last_resort(error, as_json)


_REMEDIES = {
    errno.ENOSPC: "free some space there, or write to another disk",
    errno.EDQUOT: "free some space there, or write to another disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has no more open files to give",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _last_resort(error: BaseException, as_json: bool) -> int:
    """Tell of a fault of the program; returns the exit code."""
    from tools.shared.last_resort import fault

    _told(fault(error), as_json)
    return EXIT_FAULT


def stopped(stop: KeyboardInterrupt, told: str = "") -> int:
    """Say truly what is there after a signal, or what is told instead; returns the exit code."""
    number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
    word = "interrupted" if number == signal.SIGINT else f"stopped by {stop}"
    _say("; ".join([word, told or _what_is_there(), *getattr(stop, "__notes__", ())]))
    return 128 + number


def _what_is_there() -> str:
    names = ", ".join(map(str, written()))
    return f"written before that: {names}" if names else "nothing was written"


def _say(line: str) -> None:
    """Print a line on standard error, if anybody still reads it."""
    with suppress(OSError):
        click.echo(line, err=True)


EXTRAS = {
    "distributed": "cluster",
    "hypothesis": "test",
    "onnxscript": "torch",
    "torch": "torch",
    "transformers": "matrix",
}
"""Packages that only some work needs, and the extra of this package that brings each."""


def package_missing(module: str) -> LadingError:
    """The error for a module of another package, or of this one, that is not installed."""
    package = module.partition(".")[0]
    if package in ("ir", "passes", "frontends", "backends", "tools"):
        hint = "python -m pip install --force-reinstall --no-deps lading"
        return LadingError(
            "U996", f"the module {module!r} of Lading is missing: the installation is damaged", hint=hint
        )
    extra = EXTRAS.get(package)
    hint = f"pip install 'lading[{extra}]'" if extra else f"pip install {package}, or reinstall lading"
    return LadingError("U997", f"this command needs the package {package!r}, which is not installed", hint=hint)


def require_package(package: str) -> None:
    """Do nothing when a package that not every command needs is installed; it is not imported.

    Raises:
        LadingError: U997, which names the extra that brings it.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise package_missing(package)


def _told(error: LadingError, as_json: bool) -> int:
    """Print an error, and what was written all the same; returns the exit code."""
    try:
        _print_error(error, as_json)
        sys.stdout.flush()
    except OSError:
        give_up_output()
        if as_json:
            _say(str(error))
            _say(_what_is_there())
    return EXIT_FAILED


def _print_error(error: LadingError, as_json: bool) -> None:
    # What instruments noted, such as the line that reproduces the failure, is shown like the error itself.
    notes = [Diagnostic(error.code, text, severity="note") for text in getattr(error, "__notes__", ())]
    found = [*error.diagnostics, *notes]
    if as_json:
        data: dict[str, Any] = {"errors": [item.as_dict() for item in found], **error.details}
        if written():
            data["written"] = [str(path) for path in written()]
        click.echo(json.dumps(data, indent=2))
    else:
        for item in found:
            click.echo(str(item), err=True)
        click.echo(f"  (lading explain {error.code})", err=True)
        if written():
            click.echo(_what_is_there(), err=True)


def split_list(text: str) -> list[str]:
    """The items of a list whose commas inside braces do not count."""
    return [part.strip() for part in re.findall(r"(?:[^,{]|\{[^}]*\})+", text) if part.strip()]


def megabytes(size: float) -> str:
    """A size for people, in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} bytes"
