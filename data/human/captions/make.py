"""Make this pack: `python -m data.human.captions.make FOLDER`, with the files of its origin."""

import csv
import sys
from pathlib import Path

from rlgenkit.worlds.human import CAPTIONS, CONTESTS, VOTES

from ..packs import write_rows


def make_captions(source: str | Path, folder: str | Path = CAPTIONS) -> None:
    """Write one slim file per contest from *_summary_{RoundRobin,Random,LilUCB}.csv, in the order
    of the texts (the origin's order is by rank, which would give the votes away)."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for contest in CONTESTS:
        found = {}
        for kind in ("RoundRobin", "Random", "LilUCB"):
            path = source / f"{contest}_summary_{kind}.csv"
            if path.is_file():
                with open(path, newline="", encoding="utf-8") as file:
                    found[kind] = {
                        r["caption"]: [r[k] for k in VOTES] for r in csv.DictReader(file)
                    }
        fair = found.get("RoundRobin") or found["Random"]
        rows = [
            (*votes, *found.get("LilUCB", {}).get(text, [""] * 3), text)
            for text, votes in sorted(fair.items())
        ]
        header = (*VOTES, *(f"adaptive_{name}" for name in VOTES), "caption")
        write_rows(folder / f"{contest}.csv", header, rows)
    (folder / "LICENSE").write_bytes((source / "LICENSE.txt").read_bytes())


if __name__ == "__main__":
    make_captions(sys.argv[1])
