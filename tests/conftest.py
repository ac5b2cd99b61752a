"""Shared by all tests: one quick run per notebook, what runs side by side, no GPU tests without a GPU."""

import os
from pathlib import Path

import pytest

from ci import series as runner


if "PYTEST_XDIST_WORKER" in os.environ:  # workers and the kernels they start share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def group(item) -> str:
    """What one worker runs in a row: the tests of a notebook, else those of a file."""
    chosen = getattr(item, "callspec", None)
    if item.path.stem == "test_full_profile":
        return item.nodeid
    if chosen is not None and "quick_run" in item.fixturenames:
        return next(Path(value).stem[:2] for value in chosen.params.values())
    return item.path.stem


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory):
    """notebook path -> Outcome of its quick run with the network blocked, made once per session."""
    done = {}

    def get(path: Path):
        if path not in done:
            done[path] = runner.run_one(path, tmp_path_factory.mktemp(path.stem))
        return done[path]

    return get
