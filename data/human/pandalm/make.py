"""Make this pack from testset-v1.json of the origin: `python -m data.human.pandalm.make FOLDER`."""

import json
import sys
from pathlib import Path

from rlgenkit.worlds.pandalm import ANNOTATORS, PANDALM


def make_pandalm(source: str | Path, folder: str | Path = PANDALM) -> None:
    """Write pairs.jsonl and LICENSE; the app that a task was thought for is left out.

    Six answers are the JSON value true there, once the text "True"; they are texts again.
    """
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = json.loads((source / "testset-v1.json").read_text(encoding="utf-8"))
    made = [json.dumps(_slim(row), ensure_ascii=False) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(made) + "\n", encoding="utf-8")
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


def _slim(row: dict) -> dict:
    return {
        "generators": row["cmp_key"].split("_"),
        "labels": [row[f"annotator{k + 1}"] for k in range(ANNOTATORS)],
        "instruction": row["instruction"].strip(),
        "input": row["input"].strip(),
        "first": str(row["response1"]).strip(),
        "second": str(row["response2"]).strip(),
    }


if __name__ == "__main__":
    make_pandalm(sys.argv[1])
