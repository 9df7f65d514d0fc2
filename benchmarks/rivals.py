"""The same feed for other libraries: `python -m benchmarks.rivals --cryptofeed PYTHON --bitmex-trio-websocket PYTHON`.

Each is run by the Python that has it, in a process of its own, as ours and the floor are; an adapter beside this file
drives it in its own way, and its book is checked as all are. To make such Pythons, each in an environment of its own:
`pip install cryptofeed uvloop`, and `pip install bitmex-trio-websocket`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

from . import live
from .measure import Figure, run

RIVALS = ("cryptofeed", "bitmex_trio_websocket")


def arguments(parser: argparse.ArgumentParser) -> None:
    """An option for each."""
    for rival in RIVALS:
        flag = f"--{rival.replace('_', '-')}"
        parser.add_argument(flag, metavar="PYTHON", help="a Python in whose environment it is installed")


def given(options: argparse.Namespace) -> list[str]:
    """Those options, as they were given."""
    return [f"--{rival.replace('_', '-')}={python}" for rival in RIVALS if (python := getattr(options, rival))]


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """Beside ours; and how ours compare with them."""
    clients = dict(live.CLIENTS)
    for rival in RIVALS:
        if python := getattr(options, rival):
            if not which(python) or subprocess.run([python, "-c", f"import {rival}"], capture_output=True).returncode:
                sys.exit(f"{python} is no Python that has {rival}: see the top of {Path(__file__).name}")
            adapter = Path(__file__).with_name(f"rival_{rival}.py")
            clients[f"socket to book, {rival.replace('_', '-')}"] = [python, "-P", str(adapter)]
    rates: dict[str, float] = {}
    for figure in live.measure(options, clients):
        rates[figure.name] = figure.value
        yield figure
    for rival in list(clients)[len(live.CLIENTS) :]:
        for own in live.CLIENTS:
            yield Figure(f"{own}, against {rival.rpartition(' ')[2]}", rates[own] / rates[rival], "x")


if __name__ == "__main__":
    run(__doc__, measure, arguments)
