"""Cells of a comparison on a Ray cluster: one started here, or one that is there already."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Iterator, Mapping
from types import ModuleType, TracebackType
from typing import Any

from ksel.errors import UsageError
from ksel.executors import (
    PATIENCE,
    TRIES,
    Do,
    Done,
    Work,
    answer,
    opened,
    threads_environment,
)

LOOK = 1.0
"""Seconds between two looks for Ctrl-C while nothing ends."""
REACH = 5.0
"""Seconds after which a cluster counts as out of reach."""
HANDED_ON = ("KSEL_", "HF_")
"""Beginnings of the names of variables that workers get from this process."""


class Ray:
    """A Ray cluster; each piece of work is a task that is tried again where its worker dies.

    Args:
        do: does a piece; importable by name on all machines, as ksel must be.
        address: of a cluster (``auto``, ``HOST:PORT``, ``ray://HOST:PORT``); None = start one here.
        cpus, gpus: what one piece takes.
        threads: of each piece.
        workers: pieces at once of a cluster started here; None = as many as there are cores for.
    """

    def __init__(
        self,
        do: Do,
        *,
        address: str | None,
        cpus: float,
        gpus: float,
        threads: int,
        workers: int | None = None,
    ) -> None:
        if cpus < 0 or gpus < 0 or (cpus == 0 and gpus == 0):
            raise UsageError("--ray_cpus, --ray_gpus: a cell must take some of one of them.")
        if address is not None and workers is not None:
            raise UsageError(
                "--workers: the cluster at --ray_address decides how many cells run at once. Leave "
                "it out, or set --ray_cpus and --ray_gpus."
            )
        self.do, self.address, self.workers = do, address, workers
        self.cpus, self.gpus, self.threads = cpus, gpus, threads
        self.ray = _import()
        self._running: dict[Any, Work] = {}

    def __enter__(self) -> Ray:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported unasked
        start: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            cores = None if self.workers is None else max(1, round(self.workers * self.cpus))
            start |= {"num_cpus": cores, "include_dashboard": False, "address": "local"}
        else:
            check_reach(self.address)
            start["address"] = self.address
        try:
            self.ray.init(**start)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _unreachable(self.address or "local", str(error).splitlines()[0]) from error
        try:
            self._check_resources()
            self._task = self._remote()
        except BaseException:
            self.ray.shutdown()
            raise
        return self

    def submit(self, work: Work) -> None:
        """Take a piece."""
        self._running[self._task.remote(self.do, work.payload)] = work

    def finished(self) -> Iterator[Done]:
        """What became of the pieces, as they end."""
        while self._running:
            ready, _ = self.ray.wait(list(self._running), num_returns=1, timeout=LOOK)
            for reference in ready:
                yield self._done(reference, self._running.pop(reference))

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        left = list(self._running)
        for reference in left:
            self.ray.cancel(reference)
        if left:
            self.ray.wait(left, num_returns=len(left), timeout=PATIENCE)
        self.ray.shutdown()

    def _remote(self) -> Any:
        variables = {k: v for k, v in os.environ.items() if k.startswith(HANDED_ON)}
        return self.ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=TRIES - 1,
            runtime_env={"env_vars": {**variables, **threads_environment(self.threads)}},
        )(answer)

    def _done(self, reference: Any, work: Work) -> Done:
        try:
            return opened(work, self.ray.get(reference))
        except self.ray.exceptions.RayTaskError as error:
            return Done(work, None, str(error).strip().splitlines()[-1], traceback.format_exc())
        except self.ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Done(work, None, f"its Ray worker died {TRIES} times: {reason}")

    def _check_resources(self) -> None:
        """Refuse what no machine of the cluster has: its tasks would wait forever.

        Raises:
            UsageError: names the option and what there is.
        """
        nodes: list[Mapping[str, float]] = [
            node["Resources"] for node in self.ray.nodes() if node["Alive"]
        ]
        if any(
            node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in nodes
        ):
            return
        have = "; ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise UsageError(
            f"--ray_cpus {self.cpus:g}, --ray_gpus {self.gpus:g}: no machine of the cluster has "
            f"these. It has: {have}. Lower them."
        )


def check_reach(address: str) -> None:
    """Refuse an address at which nothing answers; Ray itself would wait for it for minutes.

    Raises:
        UsageError: names the address.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # such as auto, which Ray looks up at once
    try:
        socket.create_connection((host, int(port)), REACH).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> UsageError:
    return UsageError(
        f"--ray_address {address}: no Ray cluster answers there ({reason}). Start one with ray "
        f"start --head, correct the address, or leave it out for a cluster of this machine."
    )


def _import() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "--executor ray: Ray is not installed. pip install 'ksel[ray]', or use --executor local."
        ) from error
    module: ModuleType = ray
    return module
