"""Shared by all tests: runs of notebooks, what one worker does in a row, the CPU seconds of runs.

A test that executes a notebook carries the mark `executes`; `make test-fast` leaves those out.
"""

import os
from pathlib import Path

import pytest

from ci import series as runner

# One thread in every process: the workers and the kernels that they start share the cores, and a
# run has the same bytes in whichever process it is made.
os.environ.setdefault("OMP_NUM_THREADS", "1")

RUNS = ["test_notebooks.py", "test_determinism.py", "test_full_profile.py", "test_replay.py"]
# Long groups come first, so that the many short ones fill the end.
FIRST = [
    *RUNS,
    "test_vision_language.py",
    "test_tokens.py",
    "test_embedded_models.py",
    "test_models.py",
    "test_artifacts.py",
]


def group(nodeid: str) -> str:
    """Tests that one worker does in a row: those of one notebook, else those of one file."""
    file, _, test = nodeid.partition("::")
    name = Path(file).name
    if name == "test_notebooks.py" and "[" in test:
        return f"{file}[{test.partition('[')[2]}"
    return nodeid if name in RUNS else file


def pytest_addoption(parser):
    parser.addoption(
        "--record",
        action="store_true",
        help="write which full profiles passed into ci/full_profile.json",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "executes: runs a notebook; make test-fast leaves it out")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Groups in the order of collection. (The mark xdist_group does nothing under pytest 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid)

    config.option.loadscopereorder = False
    return Together(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if {"quick_run", "second_run"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.executes)
    rank = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def once(make):
    """make(path), kept for this process."""
    done = {}

    def get(path: Path):
        if path not in done:
            done[path] = make(path)
        return done[path]

    return get


@pytest.fixture(scope="session")
def quick_run():
    """notebook path -> Outcome of its quick run with the network blocked, made once per key."""
    return once(runner.quick)


@pytest.fixture(scope="session")
def second_run(quick_run):
    """notebook path -> Outcome of a second run into a copy of the quick run's folder."""
    return once(lambda path: runner.again(path, quick_run(path)))


def pytest_terminal_summary(terminalreporter):
    """Quick runs over the goal, longest first."""
    rows = {
        dict(report.user_properties)["notebook"]: dict(report.user_properties)["cpu_seconds"]
        for kind in ("passed", "failed")
        for report in terminalreporter.getreports(kind)
        if "cpu_seconds" in dict(report.user_properties)
    }
    slow = sorted((seconds, name) for name, seconds in rows.items() if seconds > runner.GOAL_CPU_S)
    if slow:
        terminalreporter.section(f"quick runs over {runner.GOAL_CPU_S:.0f} CPU seconds")
        for seconds, name in reversed(slow):
            terminalreporter.write_line(f"{seconds:7.1f}  {name}")
