"""``python -m tools.run``: chat with a compiled model on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.base.diag import Diagnostic, LadingError
from ir.base.interrupts import Stopped
from tools.shared.cli import JSON_OPTION, QUIET_OPTION, Number, Screen, command

if TYPE_CHECKING:
    from backends.mnn.run.chat import Answer, ChatModel
    from tools.run.prompts import Prompt
    from tools.run.subject import Runnable

HELP = "/exit or Ctrl-D leaves, Ctrl-C stops an answer, /clear begins a new conversation"


@command("run")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", metavar="TEXT", help="Answer this and leave.")
@click.option("--file", "file", type=click.Path(path_type=Path), metavar="FILE",
              help="Answer each line of a text, or each prompt or chat of a .jsonl file, and leave.")  # fmt: skip
@click.option("--system", metavar="TEXT", help="What the model is told before a conversation.")
@click.option("--release", metavar="VERSION",
              help="MNN release to run on, of those that lading releases made; default the installed one.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="The longest answer.")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token, whatever the model's settings say.")
@click.option("--raw", is_flag=True, help="Continue texts as they are, without the chat template.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime; default what config.json says.")
@click.option("--timeout", type=Number(1), default=600, show_default=True,
              help="Seconds without a sign of life after which the runtime is stopped.")  # fmt: skip
@JSON_OPTION
@QUIET_OPTION
def main(folder: Path, prompt: str | None, file: Path | None, system: str | None, release: str | None,
         as_json: bool, quiet: bool, **options: Any) -> int:  # fmt: skip
    """Chat with the model directory DIR on this machine, with its template and sampler.

    Without --prompt and --file a conversation begins; where standard input is no terminal, it is the prompt. Answers
    go to standard output as they come, tokens per second to standard error.
    """
    from tools.run.subject import find

    if prompt is not None and file is not None:
        raise click.UsageError("--prompt and --file exclude each other")
    asked = _asked(prompt, file, system, as_json)
    subject = find(folder, release)
    talk = Talk(subject, Screen(as_json, quiet), options)
    with talk.model:
        talk.model.begin()
        talk.examine()
        try:
            return talk.converse(system) if asked is None else talk.answer_all(asked)
        except KeyboardInterrupt:
            click.echo()
            raise
        except LadingError as error:
            raise _with_diagnosis(error, talk.problems) from error


def _asked(prompt: str | None, file: Path | None, system: str | None, as_json: bool) -> list[Prompt] | None:
    """The prompts to answer; None for a conversation."""
    from tools.run.prompts import prompt_of, prompts_of

    if file is not None:
        return prompts_of(file, system)
    if prompt is not None:
        return [prompt_of(prompt, system)]
    if sys.stdin.isatty() and not as_json:
        return None
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise LadingError("U992", f"standard input is not UTF-8: {error.reason} at byte {error.start}") from error
    return [prompt_of(text.removesuffix("\n"), system, "standard input")]


def _with_diagnosis(error: LadingError, problems: Sequence[Diagnostic]) -> LadingError:
    """A crash with what the doctor says of the directory on that release."""
    if error.code != "B755":
        return error
    if problems:
        return LadingError.of([*error.diagnostics, *problems])
    first = error.diagnostics[0]
    hint = "lading doctor finds nothing wrong with the files; there may be too little memory, or a fault of the runtime"
    return LadingError.of([Diagnostic(first.code, first.message, first.where, hint)])


class Talk:
    """One model and the screen it answers on."""

    def __init__(self, subject: Runnable, screen: Screen, options: Mapping[str, Any]) -> None:
        from backends.mnn.run.chat import ChatModel

        self.subject = subject
        self.screen = screen
        self.tokens: int = options["max_tokens"]
        self.raw = options["raw"] or not subject.has_template
        overrides: dict[str, Any] = {"sampler_type": "greedy"} if options["greedy"] else {}
        if options["threads"] is not None:
            overrides["thread_num"] = options["threads"]
        self.model: ChatModel = ChatModel(
            subject.config, subject.interpreter, overrides=overrides, timeout_s=options["timeout"]
        )
        self.problems: list[Diagnostic] = []
        if self.raw and not options["raw"]:
            self._tell("the model has no chat template: texts are continued as they are")

    def examine(self) -> None:
        """Say beforehand what is wrong with the directory on this release: not every fault makes the runtime crash."""
        from tools.doctor.command import diagnose, releases_of

        try:
            found = diagnose(self.subject.folder, releases_of(self.subject.release)).findings
            self.problems = [item.diagnostic() for item in found if item.severity == "error"]
            for item in found:
                # Of what the doctor only warns of, what the contract says matters here: that nobody vouches for this.
                if item.severity == "warning" and (item.code == "B733" or item.code.startswith("C")):
                    self._tell(f"{item.code}: {item.message}")
        except LadingError as error:
            self.problems = list(error.diagnostics)
        if self.problems and not self.screen.as_json:
            text = f"this model is broken on MNN {self.subject.release}; what it says may be garbage:"
            click.secho(text, err=True, fg="yellow")
            for item in self.problems:
                click.echo(str(item), err=True)

    def answer_all(self, prompts: Sequence[Prompt]) -> int:
        """Answer each prompt on its own."""
        found = []
        for prompt in prompts:
            if len(prompts) > 1 and not self.screen.as_json:
                click.secho(f"> {_short(prompt.text)}", bold=True)
            found.append((prompt, self._answer(prompt.messages)))
        if self.screen.as_json:
            from tools.run.terminal import answer_data

            data = {
                "folder": str(self.subject.folder),
                "release": self.subject.release,
                "load_s": self.model.load["load_s"],
                "problems": [item.as_dict() for item in self.problems],
                "answers": [answer_data(prompt.messages, answer) for prompt, answer in found],
            }
            self.screen.data(data, "")
        return 0

    def converse(self, system: str | None) -> int:
        """Ask the terminal and answer, until it has enough."""
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  what is typed can be edited and called back

        self._tell(f"loading {self.subject.name} on MNN {self.subject.release}")
        loaded = self.model.start()
        self._tell(f"loaded in {loaded['load_s']:.2f} s; {HELP}")
        history: list[Mapping[str, str]] = []
        while True:
            try:
                text = input("> ")
            except Stopped:
                raise
            except (EOFError, KeyboardInterrupt):
                click.echo()
                return 0
            word = text.strip()
            if word == "/exit":
                return 0
            if word == "/clear":
                history = []
            elif word == "/help":
                self._tell(HELP)
            elif word:
                history = self._turn(history, text, None if history else system)

    def _turn(self, history: list[Mapping[str, str]], text: str, system: str | None) -> list[Mapping[str, str]]:
        """The conversation after one more question and its answer; as it was where that was impossible."""
        from tools.run.prompts import prompt_of

        try:
            asked = [*([] if self.raw else history), *prompt_of(text, system).messages]
            said = self._answer(asked).text
        except Stopped:
            raise
        except KeyboardInterrupt:
            said = self.model.shown.decode("utf-8", "replace")
            self._tell("\nstopped")
        except LadingError as error:
            if error.code not in ("U992", "U994"):
                raise
            click.echo(str(error), err=True)
            return history
        return [*asked, {"role": "assistant", "content": said}]

    def _answer(self, messages: Sequence[Mapping[str, str]]) -> Answer:
        from tools.run.terminal import Stream, speed_line

        stream = Stream(sys.stdout, terminal=sys.stdout.isatty())
        answer = self.model.answer(
            messages[-1]["content"] if self.raw else messages,
            tokens=self.tokens,
            limit=self.subject.context,
            show=(lambda data: None) if self.screen.as_json else stream,
        )
        if self.screen.as_json:
            return answer
        stream.close()
        if not answer.clean:
            click.echo("the runtime printed messages among the answer, which is:", err=True)
            again = Stream(sys.stdout, terminal=sys.stdout.isatty())
            again(answer.raw)
            again.close()
        self._tell(speed_line(answer))
        return answer

    def _tell(self, text: str) -> None:
        if not self.screen.quiet and not self.screen.as_json:
            click.secho(text, err=True, dim=True)


def _short(text: str, limit: int = 76) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
