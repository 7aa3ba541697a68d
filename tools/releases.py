"""``python -m tools.releases``: one environment for each MNN release, so that models can be run on all of them."""

from __future__ import annotations

import click

from ir.base.diag import LadingError
from tools.shared.cli import EXIT_FAILED, JSON_OPTION, QUIET_OPTION, Screen, command, stopped


@command("releases")
@click.argument("versions", nargs=-1)
@JSON_OPTION
@QUIET_OPTION
def main(versions: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Make the environments of VERSIONS, by default of every release with a language-model runtime.

    They lie in the folder that the variable LADING_MNN_ENVS names, else in the user's cache folder, and are kept.
    """
    from backends.mnn.target.environments import LLM_RELEASES, ReleaseEnvironments

    screen = Screen(as_json, quiet)
    environments = ReleaseEnvironments()
    found: dict[str, str] = {}
    failed: dict[str, str] = {}
    wanted = versions or LLM_RELEASES
    try:
        with screen.progress() as listener:
            for number, version in enumerate(wanted):
                listener.begin(number, len(wanted), f"installing MNN {version}")
                try:
                    found[version] = str(environments.ensure(version))
                except LadingError as error:
                    failed[version] = str(error)
    except KeyboardInterrupt as stop:
        done = ", ".join(found) or "none"
        return stopped(stop, f"environments made or found: {done}; the same command goes on with the others")
    for text in failed.values():
        click.echo(text, err=True)
    if not quiet:
        screen.data({"found": found, "failed": failed}, "\n".join(f"MNN {key}: {path}" for key, path in found.items()))
    return EXIT_FAILED if failed else 0


if __name__ == "__main__":
    main()
