"""Find or make one Python environment per MNN release, so that an artefact can really be run on each of them.

Wheels of different releases cannot live in one environment. Each release gets ``<folder>/mnn-<version>``, a virtual
environment with MNN and numpy alone. Whether it is the right one is read from its metadata, never by importing MNN.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder

LLM_RELEASES = ("3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1")
"""Releases that one portable artefact is meant for; the wheels before them have no usable ``llm`` module."""

FOLDER_VARIABLE = "LADING_MNN_ENVS"


def installed_version() -> str | None:
    """Version of the MNN wheel of this very environment, or None; MNN is not imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("MNN")
    except PackageNotFoundError:
        return None


def default_folder() -> Path:
    """``$LADING_MNN_ENVS``, else ``lading/mnn`` in the user's cache folder."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification asks to ignore a relative path
    root = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return root / "lading" / "mnn"


class ReleaseEnvironments:
    """The environments below one folder (default: `default_folder`)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def path(self, version: str) -> Path:
        """Where the environment of a release is, or would be."""
        return self.folder / f"mnn-{version}"

    def find(self, version: str) -> Path | None:
        """Absolute path of the interpreter that has this MNN release, or None when there is no such environment."""
        return _interpreter(self.path(version).absolute(), version)

    def available(self) -> dict[str, Path]:
        """Interpreters of the `LLM_RELEASES` that are there, oldest first."""
        found = {version: self.find(version) for version in LLM_RELEASES}
        return {version: path for version, path in found.items() if path is not None}

    def ensure(self, version: str, *, timeout_s: float = 900) -> Path:
        """The interpreter of a release; its environment is made by pip when it is missing.

        The environment is made beside its place and renamed, so a half-made one is never found.

        Raises:
            LadingError: B670 when it cannot be made, B671 when something else is in its place.
        """
        if found := self.find(version):
            return found
        target = self.path(version)
        if target.exists():
            hint = f"delete {target}, or set {FOLDER_VARIABLE} to another folder"
            raise LadingError("B671", f"no working environment of MNN {version} in {target}", hint=hint)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LadingError("B670", f"cannot make {self.folder}: {error.strerror}") from error
        with scratch_folder(self.folder, f".mnn-{version}-") as folder:
            made = folder / "environment"
            _install(made, version, timeout_s)
            try:
                made.rename(target)
            except OSError:
                # somebody else was faster; what they made is checked below
                if not target.exists():
                    raise
        if found := self.find(version):
            return found
        raise LadingError("B671", f"no working environment of MNN {version} in {target}")


def interpreters() -> dict[str, Path | str]:
    """Interpreter of each of the `LLM_RELEASES` that this machine can run, oldest first: the release's own environment,
    or this one for the installed release."""
    found: dict[str, Path | str] = dict(ReleaseEnvironments().available())
    found.setdefault(installed_version() or "", sys.executable)
    return {version: found[version] for version in LLM_RELEASES if version in found}


def module_packages(versions: Sequence[str]) -> dict[str, Path | None]:
    """The folder with the packages of each of these releases that this machine can run from this interpreter, oldest
    first; None for the one that is installed here. The installed release alone when none of them is there."""
    found: dict[str, Path | None] = {}
    here = installed_version()
    name = "python{}.{}".format(*sys.version_info[:2])
    for version in versions:
        folder = ReleaseEnvironments().path(version).absolute() / "lib" / name / "site-packages"
        if version == here:
            found[version] = None
        elif _has_release(folder, version) and (folder / "numpy").is_dir():
            found[version] = folder
    return found or ({} if here is None else {here: None})


def _interpreter(environment: Path, version: str) -> Path | None:
    python = environment / "bin" / "python"
    if not os.access(python, os.X_OK):
        return None
    packages = [folder for folder in environment.glob("lib/python*/site-packages") if (folder / "numpy").is_dir()]
    return python if any(_has_release(folder, version) for folder in packages) else None


def _has_release(packages: Path, version: str) -> bool:
    """RECORD is what pip writes last, so an interrupted installation has none."""
    names = (f"mnn-{version}.dist-info", f"MNN-{version}.dist-info")
    return (packages / "MNN").is_dir() and any((packages / name / "RECORD").is_file() for name in names)


def _run(command: list[str | Path], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command that ends, with all its children, when this is interrupted; subprocess.TimeoutExpired as usual."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _install(environment: Path, version: str, timeout_s: float) -> None:
    python = environment / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        f"MNN=={version}",
        "numpy",
    ]
    commands: tuple[list[str | Path], ...] = ([sys.executable, "-m", "venv", environment], pip)
    for command in commands:
        try:
            done = _run(command, timeout_s)
        except subprocess.TimeoutExpired as error:
            message = f"making the environment of MNN {version} took more than {timeout_s:g} s"
            raise LadingError("B670", message) from error
        if done.returncode:
            log = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            running = ".".join(map(str, sys.version_info[:2]))
            hint = f"check the network, and that MNN {version} has a wheel for Python {running} on this platform"
            raise LadingError("B670", f"cannot make the environment of MNN {version}", log, hint)
