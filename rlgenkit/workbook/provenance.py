"""Where numbers come from: code version, library versions, data, device, threads."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("numpy", "scipy", "torch", "diffusers", "transformers", "peft", "matplotlib")


def provenance(device: str) -> dict[str, Any]:
    """Commit, versions, hash of data/manifest.json, device name and CPU threads; no host names."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    manifest = ROOT / "data" / "manifest.json"
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else None
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **versions()},
        "data": {"manifest_sha256": digest},
        "device": name,
        "threads": torch.get_num_threads(),
    }


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of the libraries that numbers depend on."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Abbreviated commit with "-dirty" if tracked files differ; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
