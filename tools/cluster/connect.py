"""``--cluster``: a scheduler that runs, by address or file, or workers on this machine for the time of the command."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ir.base.diag import LadingError
from tools.cluster.executor import ClusterExecutor

REACH_S = 30.0
"""Seconds to reach a scheduler."""
LOADED_ONCE = (
    "distributed.nanny",
    "tools.cluster.worker",
    "backends.mnn.write.weight_file",
    "passes.calibration.by_data",
    "passes.calibration.recalibrate",
)
"""Modules that local workers have from the process that they are forked from."""
LOCAL_SETTINGS = {
    "distributed.worker.multiprocessing-method": "forkserver",
    # Samples of stacks, counts of ticks and states of the machine, which nobody looks at, are 2 % of a processor for
    # each worker.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "30s",
}
"""Dask's settings for local workers."""
WORKERS_S = 300.0
"""Seconds to wait for a first worker."""
_ADDRESS = re.compile(r"(?:(?:tcp|tls|ucx|ws|wss)://)?(?:\[[0-9a-fA-F:]+\]|[^\s:/]+):\d+")


@contextmanager
def working_on(address: str, local: Executor) -> Iterator[ClusterExecutor]:
    """An executor over what an address names, which ends with the block.

    Args:
        address: ``local:N`` for N processes of this machine, ``HOST:PORT`` with or without a protocol, or the file
            that the scheduler writes (``--scheduler-file``).
        local: runs what stays in this process.

    Raises:
        LadingError: U969 it names no cluster, or none that answers or has workers; B797 workers with other versions.
    """
    count = _local_count(address)
    with ExitStack() as stack:
        _be_quiet()
        if count is not None:
            client = stack.enter_context(_own_cluster(count))
            threads = max(1, len(os.sched_getaffinity(0)) // count)
            yield ClusterExecutor(client, local, threads, starting=count)
        else:
            client = stack.enter_context(_running_cluster(address))
            yield ClusterExecutor(client, local)


def absolute(address: str) -> str:
    """The same address for processes that stand in other folders.

    Raises:
        LadingError: U969 it names no cluster.
    """
    if _local_count(address) is not None or _ADDRESS.fullmatch(address):
        return address
    if not Path(address).is_file():
        hint = "give local:N, HOST:PORT of a scheduler, or the file that it was told to write"
        raise LadingError("U969", f"{address!r} is neither an address nor a file that is there", hint=hint)
    return str(Path(address).absolute())


def _local_count(address: str) -> int | None:
    """N of ``local:N``; None for anything else."""
    word, colon, number = address.partition(":")
    if word != "local" or not colon:
        return None
    if not number.isdecimal() or not 1 <= int(number) <= 1024:
        raise LadingError("U969", f"{address!r} does not say how many workers", hint="write local:4 for four of them")
    return int(number)


@contextmanager
def _own_cluster(count: int) -> Iterator[Any]:
    """A client of workers that are starting: work that they are given meanwhile waits for the first of them."""
    from multiprocessing import forkserver, get_context

    # What all workers need is loaded once, while this process loads the scheduler.
    get_context("forkserver").set_forkserver_preload(list(LOADED_ONCE))
    forkserver.ensure_running()
    import dask
    from distributed import Client, LocalCluster

    with (
        TemporaryDirectory(prefix="lading-cluster-", ignore_cleanup_errors=True) as folder,
        dask.config.set(LOCAL_SETTINGS),
        LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.CRITICAL,
            local_directory=folder,
            memory_limit=0,
            env=dict(os.environ),
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.scale(count)
        yield client


@contextmanager
def _running_cluster(address: str) -> Iterator[Any]:
    from distributed import Client

    where = {"address" if _ADDRESS.fullmatch(address) else "scheduler_file": absolute(address)}
    try:
        client = Client(**where, timeout=REACH_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        hint = "start one with 'dask scheduler', and see that this machine reaches its port"
        raise LadingError("U969", f"no scheduler answers at {address}", hint=hint) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError as error:
            hint = f"start workers with 'dask worker {address}'"
            raise LadingError("U969", f"the scheduler at {address} has no workers", hint=hint) from error
        yield client


def _be_quiet() -> None:
    """Dask tells on standard error what is told as errors here."""
    for name in ("distributed", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


__all__ = ["absolute", "working_on"]
