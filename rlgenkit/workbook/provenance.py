"""Where numbers come from: hashes of the code and data that were used, versions, device, threads."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("numpy", "scipy", "torch", "diffusers", "transformers", "peft", "matplotlib")
USED = ("rlgenkit", "data/manifest.json")


def provenance(device: str, code: dict[str, str | None]) -> dict[str, Any]:
    """Hashes of code and of data/manifest.json, versions, device name, CPU threads; no host names.

    commit: None where the package is not as committed (notebooks do not count: JupyterLab saves
    them when they are opened); then the hashes alone tell what ran.
    """
    import torch

    clean = _git("diff", "--quiet", "HEAD", "--", *USED) is not None
    return {
        "code": code,
        "commit": _git("rev-parse", "--short=12", "HEAD") if clean else None,
        "versions": {"python": platform.python_version(), **versions()},
        "data": {"manifest_sha256": _manifest() or None},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
    }


def libraries() -> list[str]:
    """What every phase depends on: interpreter, numerical libraries, the files below data/."""
    return [platform.python_version(), _manifest(), json.dumps(versions(), sort_keys=True)]


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


def _manifest() -> str:
    path = ROOT / "data" / "manifest.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _git(*words: str) -> str | None:
    """What git says; None where it refuses, is missing, or where there is no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()
