"""`python -m rlgenkit doctor`: does this machine have what the notebooks were tested with?"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path

from rlgenkit.commands.places import ROOT


def lock() -> dict[str, str]:
    """Name -> version of requirements.lock."""
    rows = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return dict(r.split("==") for r in rows if "==" in r and not r.startswith("#"))


def version_problems() -> list[str]:
    """Locked packages that are absent here or have another version."""
    found = []
    for name, wanted in lock().items():
        try:
            have = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} {wanted} is not installed; run make setup")
            continue
        if have != wanted:
            found.append(f"{name} is {have}, tested with {wanted}")
    return found


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest() -> list[dict]:
    """Rows of data/manifest.json: path, sha256, bytes, license, origin, command; [] without one."""
    path = ROOT / "data" / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))["files"] if path.is_file() else []


def data_problems() -> list[str]:
    """Files of the manifest that are missing or are not the bytes that it names."""
    found = []
    for row in manifest():
        path = ROOT / row["path"]
        if not path.is_file():
            found.append(f"{row['path']} is missing; restore it with git checkout -- {row['path']}")
        elif path.stat().st_size != row["bytes"] or sha256(path) != row["sha256"]:
            found.append(f"{row['path']} is not the file that data/manifest.json names")
    return found


def main(argv: list[str]) -> int:
    """Print what is here and what is wrong; 0 when nothing is, else 1."""
    import torch

    argparse.ArgumentParser(prog="rlgenkit doctor", description=__doc__).parse_args(argv)

    devices = ["cpu"] + [
        f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    python = platform.python_version()
    print(f"python   {python}\ntorch    {torch.__version__}\ndevices  {', '.join(devices)}")
    print(f"cores    {os.cpu_count()}, torch uses {torch.get_num_threads()} threads")
    models = sorted(p.parent.name for p in (ROOT / "data" / "models").glob("*/README.md"))
    print(f"models   {', '.join(models) or 'none; make models trains them'}")
    found = version_problems() + data_problems()
    if not re.match(r"3\.1[1-9]", python):
        found.insert(0, f"Python {python} is older than 3.11")
    print("\n".join(f"PROBLEM  {p}" for p in found) or "ok       versions and data files as locked")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
