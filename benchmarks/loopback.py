"""The feed, and its clients one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from .measure import check
from .workload import Workload

ROOT = Path(__file__).parent.parent


class Feed:
    """A running feed."""

    def __init__(self, workload: Workload, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.workload = workload
        self._lines = process.stdout
        self.port = int(self._lines.readline())

    def run(self, name: str, command: Sequence[str]) -> dict[str, Any]:
        """Run a client; what it reports, and ``seconds``: from when the feed began to send to when it had all.

        The client gets the port, and the number of deltas, behind its command. Its book is checked.
        """
        arguments = [*command, str(self.port), str(self.workload.deltas)]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        report: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
        check(name, {side: dict(map(tuple, levels)) for side, levels in report["book"].items()}, self.workload)
        report["seconds"] = report["ended"] - float(self._lines.readline())
        return report

    def run_client(self, kind: str, *asked: str) -> dict[str, Any]:
        """`run` one of benchmarks.client."""
        return self.run(kind, [sys.executable, "-m", "benchmarks.client", kind, *asked])


@contextmanager
def open_feed(workload: Workload, rate: float | None = None) -> Iterator[Feed]:
    """Serve a workload, as fast as it is read or at so many deltas a second, for as long as the context lasts."""
    command = [sys.executable, "-m", "benchmarks.feed", str(workload.deltas), str(workload.levels)]
    command += [] if rate is None else [str(rate)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Feed(workload, process)
        finally:
            process.terminate()
