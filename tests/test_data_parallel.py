"""Data-parallel updates with accelerate: the step of one process, whatever its share of the groups."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ci import series as runner
from rlgenkit.commands.places import ROOT


def update(out, groups, processes):
    # On CPUs `accelerate launch` starts several processes through MPI only; torchrun needs nothing.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [sys.executable, *(launch if processes > 1 else [])]
    done = subprocess.run(
        [*words, "tests/data_parallel.py", str(out), str(groups)],
        cwd=ROOT,
        env={**os.environ, **runner.offline(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [load_file(f"{out}.{k}") for k in range(processes)]


@pytest.mark.parametrize("groups", [3, 1])
def test_two_processes_make_the_step_of_one(tmp_path, groups):
    """3 groups: two and one; 1 group: the second process has no row and still takes part."""
    (alone,) = update(tmp_path / "one", groups, 1)
    both = update(tmp_path / "two", groups, 2)
    assert [int(x["rows"]) for x in both] == ([8, 4] if groups == 3 else [4, 0])
    moved = 0.0
    for name, expected in alone.items():
        if name == "rows":
            continue
        for found in both:
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(both[0][name], both[1][name]), name
        moved = max(moved, float(expected.abs().max())) if name.startswith("adapter") else moved
    assert moved > 1e-4 and float(alone["0/grad_norm"]) > 0
