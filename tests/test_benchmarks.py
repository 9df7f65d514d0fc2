"""The benchmarks run, and every book in them is exact (they check that themselves).

What they measure is nobody's test.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_pipeline_benchmark_prints_each_figure_beside_its_floor():
    command = [sys.executable, "-m", "benchmarks.pipeline", "--messages", "500", "--levels", "50", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert [line.partition(":")[0] for line in lines] == ["recording"] * 3 + ["socket"] * 2
    assert all("messages/s" in line and "book exact" in line for line in lines)
    assert sum("of the floor" in line for line in lines) == 3
