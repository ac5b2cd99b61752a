"""Make this pack from llmbar_with_judges.jsonl: `python -m data.human.llmbar.make FOLDER`.

That file joins the origin's Dataset/LLMBar/*/dataset.json with each judge's result.json.
"""

import json
import sys
from pathlib import Path

from rlgenkit.worlds.llmbar import JUDGES, LLMBAR, STRATEGIES

ORDERS = ("swap_false", "swap_true")
VERDICTS = {"1": 1, "2": 2, None: 0}  # 0 = unreadable


def make_llmbar(source: str | Path, folder: str | Path = LLMBAR) -> None:
    """Write pairs.jsonl and LICENSE; the origin's verdicts name an answer alike in both orders."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = (source / "llmbar_with_judges.jsonl").read_text(encoding="utf-8").split("\n")
    made = [json.dumps(_slim(json.loads(line)), ensure_ascii=False) for line in lines if line]
    (folder / "pairs.jsonl").write_text("\n".join(made) + "\n", encoding="utf-8")
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


def _slim(row: dict) -> dict:
    said = row["verdicts"]
    return {
        "subset": row["subset"].removeprefix("Adversarial/"),
        "instruction": row["input"],
        "first": row["output_1"],
        "second": row["output_2"],
        "right": row["label"],
        "verdicts": [
            [[VERDICTS[said[f"{j}/{s}"][order]] for order in ORDERS] for s in STRATEGIES]
            for j in JUDGES
        ],
        "criteria": [row["criteria"][judge].strip() for judge in JUDGES],
    }


if __name__ == "__main__":
    make_llmbar(sys.argv[1])
