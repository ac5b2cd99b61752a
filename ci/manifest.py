"""`python -m rlgenkit manifest`: data/manifest.json from the files under data/ and their origins in
data/sources.toml, after files there changed on purpose."""

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from ci.doctor import sha256
from rlgenkit.commands.places import ROOT, InputError, ended

DATA = ROOT / "data"
# Pages, results and studies are made from the data; listing them here would run in a circle.
# Nor are recipes listed: git keeps them, and a changed comment must not restart every phase.
LEFT_OUT = ("results/", "studies/", "README.md", "manifest.json", "sources.toml")


def files() -> list[Path]:
    """Files under data/ that git would keep (all files where there is no git), in order."""
    ask = ["git", "ls-files", "-co", "--exclude-standard", "data"]
    done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.splitlines() if done.returncode == 0 else []
    found = [ROOT / n for n in names] or [p for p in DATA.rglob("*") if p.is_file()]
    inside = {p for p in found if p.is_file() and p.name != "README.md" and p.suffix != ".py"}
    return sorted(p for p in inside if not str(p.relative_to(DATA)).startswith(LEFT_OUT))


def rows() -> list[dict]:
    """One row per file: path, sha256, bytes and, from the longest matching source, license, origin
    and command. InputError names the first file without a source."""
    sources = tomllib.loads((DATA / "sources.toml").read_text(encoding="utf-8"))["source"]
    made = []
    for path in files():
        inside = path.relative_to(DATA).as_posix()
        fitting = [s for s in sources if inside.startswith(s["path"])]
        if not fitting:
            raise InputError(f"data/sources.toml names no origin and license for data/{inside}.")
        source = max(fitting, key=lambda s: len(s["path"]))
        made.append(
            {
                "path": f"data/{inside}",
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
                "license": source["license"],
                "origin": source["origin"],
                "command": source["command"],
            }
        )
    return made


def main(argv: list[str]) -> int:
    """Write data/manifest.json anew."""
    argparse.ArgumentParser(prog="rlgenkit manifest", description=__doc__).parse_args(argv)
    text = json.dumps({"schema": 1, "files": rows()}, indent=1, ensure_ascii=False)
    (DATA / "manifest.json").write_text(text + "\n", encoding="utf-8")
    print("data/manifest.json")
    return 0


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
