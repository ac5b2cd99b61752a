"""Shared by all tests: one quick run per notebook, and GPU tests skipped where there is no GPU."""

from pathlib import Path

import pytest

from ci import series as runner


def pytest_collection_modifyitems(items):
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
