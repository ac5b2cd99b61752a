"""Make this pack from pccd.csv and critiques_minilm.npy: `python -m data.human.pccd.make FOLDER`.

Both hold only numbers derived from the origin's critiques: no text, no title, no picture's address.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rlgenkit.worlds.pccd import ASPECTS, PCCD, SHARES

from ..packs import write_rows

FIRST = ("split", "category", "reviewer", "overall")
NUMBERED = tuple(f"score_{k + 1}" for k in range(len(ASPECTS)))


def make_pccd(source: str | Path, folder: str | Path = PCCD) -> None:
    """Write critiques.csv, embeddings.safetensors (half precision) and LICENSE.

    The origin's scores 1 to 7 have no names. They are those of ASPECTS in order: each is missing
    exactly where that aspect's text is, and follows that aspect's sentiment more than any other's.
    """
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    derived = [f"{group}_{aspect}" for group in ("vader", "words") for aspect in ASPECTS]
    taken = (*FIRST, *NUMBERED, *derived, *(f"roberta_{share}" for share in SHARES))
    named = (*FIRST, *(f"score_{aspect}" for aspect in ASPECTS), *derived, *SHARES)
    with open(source / "pccd.csv", newline="", encoding="utf-8") as file:
        rows = [tuple(row[name] for name in taken) for row in csv.DictReader(file)]
    write_rows(folder / "critiques.csv", named, rows)
    vectors = torch.from_numpy(np.load(source / "critiques_minilm.npy", allow_pickle=False))
    save_file({"critiques": vectors.half()}, folder / "embeddings.safetensors")
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


if __name__ == "__main__":
    make_pccd(sys.argv[1])
