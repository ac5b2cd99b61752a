"""Make this pack from example_model_solutions.jsonl: `python -m data.human.gsm8k.make FOLDER`."""

import json
import sys
from pathlib import Path

from rlgenkit.worlds.gsm8k import GSM8K, SOLVERS


def make_gsm8k(source: str | Path, folder: str | Path = GSM8K) -> None:
    """Write solutions.jsonl and LICENSE from example_model_solutions.jsonl; of the official solution
    only the final answer is kept."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for line in (source / "example_model_solutions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        made.append(
            json.dumps(
                {
                    "question": row["question"],
                    "answer": row["ground_truth"].rsplit("A: ", 1)[1].strip(),
                    "right": [row[s]["is_correct"] for s in SOLVERS],
                    "solutions": [row[s]["solution"] for s in SOLVERS],
                },
                ensure_ascii=False,
            )
        )
    (folder / "solutions.jsonl").write_text("\n".join(made) + "\n", encoding="utf-8")
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


if __name__ == "__main__":
    make_gsm8k(sys.argv[1])
