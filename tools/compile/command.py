"""``python -m tools.compile``: compile a model into a directory that runs, with its contract."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tools.shared.cli import JSON_OPTION, QUIET_OPTION, FolderOr, Number, Screen, command, require_package

if TYPE_CHECKING:
    from passes.framework.manager import Instrument
    from passes.framework.options import OptionSpec
    from tools.compile.job import Listener, Request, Result


@command("compile")
@click.argument("model", required=False)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder to write; default build/<model name>.")
@click.option("--to", metavar="BACKEND", help="What to compile for: mnn-llm, onnx or another backend; "
              "default what suits the model.")  # fmt: skip
@click.option("--via", type=click.Choice(["torch"]), help="Have transformers build the model of a checkpoint and torch "
              "export it; for families without a row.")  # fmt: skip
@click.option("--passes", "pipeline", metavar="PIPELINE",
              help="Name or text of a pipeline, or path of a TOML file; default the backend's own.")  # fmt: skip
@click.option("--target", help="What it must run on; for MNN 'portable', which is the default, a release, or "
              "'>=3.5,<3.6.1'.")  # fmt: skip
@click.option("--verify", type=click.Choice(["none", "quick", "full"]), default="quick", show_default=True,
              help="How much to read back and run on the installed runtime; full also runs transformers, where it is "
              "installed.")  # fmt: skip
@click.option("--inputs", type=click.Path(path_type=Path), metavar="FILE.npz|DIR",
              help="Inputs to run the result on in place of made-up ones: an .npz file with their names, a folder of such, "
              "or ONNX test data sets.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), help="File whose perplexity is measured; the example has one.")
@click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE|DIR",
              help="What to measure with. For language models text or JSONL of chats; default a sample that comes with the "
              "package. For others inputs as for --inputs, which may be stacked.")  # fmt: skip
@click.option("--budget", metavar="BPW", help="Choose each weight's precision: least loss at, for example, 4.5bpw.")
@click.option("--max-size", metavar="SIZE", help="The same for a weight file of at most, for example, 300MB.")
@click.option("--max-kl", type=Number(0, min_open=True), metavar="KL",
              help="The same the other way: the smallest file with at most this divergence from the float model.")  # fmt: skip
@click.option("--min-speed", metavar="SHARE",
              help="Choose each weight's precision so that decoding is at least this fast, for example 0.95x of the fastest "
              "uniform width; limits combine.")  # fmt: skip
@click.option("--device", metavar="NAME", help="What the model is to run fast on; for MNN x86 (the default), arm82, arm86, "
              "metal or opencl.")  # fmt: skip
@click.option("--save-plan", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the precision chosen for each weight as a file that plan= reads.")  # fmt: skip
@click.option(
    "--kl-bar", type=Number(0, min_open=True), help="Divergence above which verification fails; default by width."
)
@click.option("--revision", help="Revision of a model on the Hugging Face Hub.")
@click.option("--lora", metavar="DIR[:WEIGHT]", multiple=True, help="Merge a LoRA adapter, folder or hub name, into a "
              "checkpoint, times a weight; may be repeated.")  # fmt: skip
@click.option("--tokenizer", type=FolderOr("none"), metavar="DIR",
              help="Folder with the tokenizer; default that of the model; none makes a result that runs on "
              "token ids.")  # fmt: skip
@click.option("--embedding", type=click.Path(path_type=Path, exists=True), metavar="PATH",
              help="File of rows, or checkpoint, with the embedding of an ONNX graph that does not hold it.")  # fmt: skip
@click.option(
    "--memory",
    type=click.Choice(["low", "normal", "high"]),
    help="Runtime setting to write; default low with integer weights.",
)
@click.option(
    "--precision",
    type=click.Choice(["low", "normal", "high"]),
    help="Runtime setting to write; default low unless all is fp32.",
)
@click.option("--opset", type=click.IntRange(7, 99), metavar="VERSION",
              help="Version of ONNX's operators to write, with --to onnx; default that of the passes.")  # fmt: skip
@click.option("--external-data", is_flag=True, default=None,
              help="Write the weights of an ONNX model beside it, whatever their size.")  # fmt: skip
@click.option("--mmap", is_flag=True, default=None, help="Have the runtime keep the weights as it rearranges them in a "
              "folder where the program runs, from which later loads map them in an instant.")  # fmt: skip
@click.option("--settings", metavar="KEY=VALUE,...", help="Further runtime settings to write, such as "
              "attention_mode=0; lading ladder measures them and tells.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Runtime threads to write; default 4.")
@click.option("--workers", type=click.IntRange(1), help="Threads of the compiler; default one per processor.")
@click.option("--cluster", metavar="ADDRESS|local:N", help="Give the work to the workers of a Dask scheduler, by address "
              "or scheduler file, or to N processes of this machine.")  # fmt: skip
@click.option("--guard", is_flag=True, help="Also write check_inputs.py and lading_guard.h, which check inputs.")
@click.option("--force", is_flag=True, help="Replace a folder written before.")
@click.option(
    "--dump-ir", type=click.Path(path_type=Path), metavar="DIR", help="Write the IR before and after each pass."
)
@click.option("--verify-each", is_flag=True, help="Check the IR after each pass.")
@click.option("--check-numbers", is_flag=True, help="Evaluate the IR after each pass and name the first that drifts.")
@click.option("--timing", is_flag=True, help="Print the time of each pass.")
@click.option("--plan", "planned", is_flag=True, help="Tell what would be written and what it would take, from the "
              "configuration and headers of a checkpoint alone, and leave.")  # fmt: skip
@click.option("--list-passes", is_flag=True, help="Print every pass with its options, and leave.")
@click.option("--print-pipeline", is_flag=True, help="Print the pipeline in canonical form, and leave.")
@JSON_OPTION
@QUIET_OPTION
def main(
    model: str | None,
    out: Path | None,
    pipeline: str | None,
    planned: bool,
    list_passes: bool,
    print_pipeline: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Compile MODEL into a directory that runs, with its contract.

    MODEL is a Hugging Face checkpoint folder or hub name, an .onnx file, a .lading text, or whatever a plugin reads.
    Language models become MNN model directories, other graphs MNN modules, unless --to says otherwise. Without MODEL
    the example checkpoint of the source tree is compiled.
    """
    from tools.compile.job import LIMITS, Request

    screen = Screen(as_json, quiet)
    if options["cluster"] is not None:
        require_package("distributed")
    if list_passes:
        return _list_passes(screen)
    if print_pipeline:
        limits = {key: options[key] for key in (*LIMITS, "device", "save_plan")}
        return _print_pipeline(screen, Request("", Path(), pipeline, to=options["to"], **limits))
    if planned:
        return _plan(screen, model, pipeline, options)
    return _compile(screen, model, out, pipeline, options)


def _list_passes(screen: Screen) -> int:
    from passes.framework.registry import default_registry

    registry = default_registry()
    infos = registry.list_passes()
    lines = []
    for info in infos:
        lines.append(f"{info.name}\n    {info.summary}")
        lines += [f"    {option.key}: {option.type_text}{_default(option)}  {option.help}" for option in info.options]
    lines += ["", "pipelines", *(f"    {name} = {text}" for name, text in sorted(registry.pipelines.items()))]
    screen.data(
        {"passes": [info.as_dict() for info in infos], "pipelines": dict(sorted(registry.pipelines.items()))},
        "\n".join(lines),
    )
    return 0


def _print_pipeline(screen: Screen, request: Request) -> int:
    from tools.compile.job import pipeline_of
    from tools.shared.formats import CHECKPOINT, Formats

    formats = Formats()
    backend = formats.emitter(request.to or formats.emitter_of_frontend(CHECKPOINT) or "onnx")
    text = str(pipeline_of(request, formats, backend))
    screen.data({"pipeline": text}, text)
    return 0


def _plan(screen: Screen, model: str | None, pipeline: str | None, options: dict[str, Any]) -> int:
    from tools.compile.job import Request, example_checkpoint
    from tools.compile.plan import plan_data, plan_model

    given = {key: value for key, value in options.items() if key in Request.__dataclass_fields__}
    plan = plan_model(Request(model or str(example_checkpoint()), Path(), pipeline, **given))
    if screen.as_json:
        click.echo(json.dumps(plan_data(plan), indent=2, ensure_ascii=False))
    elif not screen.quiet:
        from tools.compile.plan_report import show_plan

        show_plan(screen.console, plan)
    return 1 if plan.planned is None else 0


def _default(option: OptionSpec) -> str:
    return "" if option.required else f" = {option.write(option.default).partition('=')[2] or 'true'}"


def _compile(screen: Screen, model: str | None, out: Path | None, pipeline: str | None, options: dict[str, Any]) -> int:
    from tools.compile.job import Request, example_checkpoint, with_example_texts

    example = None if model is not None else example_checkpoint()
    model = model or str(example)
    path = Path(os.path.expanduser(model))
    if options["to"] in (None, "mnn-llm") and options["tokenizer"] != "none" and (path / "config.json").is_file():
        from frontends.text.tokenizer_child import prepare

        # Half of what a child does about a small tokenizer is to start, and a processor has nothing to do meanwhile.
        prepare("backends.mnn.tokenizer.forms")
    name = _title(path) if path.exists() else model.replace("/", "--")
    instruments = _instruments(options)
    watch = {key: options.pop(key) for key in ("dump_ir", "verify_each", "check_numbers", "timing")}
    request = Request(model, out or Path("build") / name, pipeline, instruments=instruments, **options)
    if example is not None:
        request = with_example_texts(request, example)
    with screen.progress() as listener:
        result = _run(request, listener, screen)
    if screen.as_json:
        from tools.compile.report import result_data

        click.echo(json.dumps(result_data(result), indent=2, ensure_ascii=False))
    elif not screen.quiet:
        from tools.compile.report import show_result

        show_result(screen.console, result, timing=watch["timing"])
    return 0


def _title(path: Path) -> str:
    """What a model is called, which is what its folder is called when nobody says."""
    if path.suffix != ".onnx":
        return path.resolve().name if path.is_dir() else path.stem
    from frontends.onnx.beside import title_of

    return title_of(path)


def _run(request: Request, listener: Listener, screen: Screen) -> Result:
    """Compile; what is refused after it was measured is shown with its figures, and below the errors a command to try."""
    from backends.backend import Rejected
    from tools.compile.job import compile_model

    try:
        return compile_model(request, listener)
    except Rejected as error:
        from tools.compile.advice import command_to_try
        from tools.compile.report import rejected_data, show_rejected

        command = command_to_try(request, error.diagnostics)
        if screen.as_json:
            error.details = rejected_data(error, command)
        else:
            show_rejected(screen.errors, error)
        if command:
            error.add_note(f"a command to try:\n  {command}")
        raise


def _instruments(options: dict[str, Any]) -> list[Instrument]:
    found: list[Instrument] = []
    if options["dump_ir"] is not None:
        from passes.framework.instruments import DumpIR, KeepLastGood

        found += [DumpIR(options["dump_ir"], only_changed=False), KeepLastGood(options["dump_ir"])]
    if options["verify_each"]:
        from passes.framework.instruments import VerifyEach

        found.append(VerifyEach())
    if options["check_numbers"]:
        from passes.framework.check_numbers import CheckNumbers

        found.append(CheckNumbers(memory_limit=256 << 20))
    return found
