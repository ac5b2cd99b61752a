"""Make this pack: `python -m data.human.opinpref.make FOLDER`, with the two annotation files of
the origin. The reviews and the annotators' names are left out.

`python -m data.human.opinpref.make` alone makes embeddings.safetensors anew.
"""

import json
import sys
from pathlib import Path

from torch import Tensor

from rlgenkit.worlds.opinpref import ASPECTS, OPINPREF, load_opinpref

ANNOTATORS = {"swaroop": 0, "raghava": 1, "rupasai": 2, "common": 3}  # in the origin only


def make_opinpref(source: str | Path, folder: str | Path = OPINPREF) -> None:
    """Write pairs.jsonl and LICENSE from annotations-train.jsonl and annotations-valid.jsonl."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for split, name in (("train", "train"), ("validation", "valid")):
        text = (source / f"annotations-{name}.jsonl").read_text(encoding="utf-8")
        made += [
            json.dumps(_slim(json.loads(line), split), ensure_ascii=False)
            for line in text.splitlines()
        ]
    (folder / "pairs.jsonl").write_text("\n".join(made) + "\n", encoding="utf-8")
    (folder / "LICENSE").write_bytes((source / "LICENSE").read_bytes())


def _slim(row: dict, split: str) -> dict:
    two = [row["summary-pairs"][f"summary-{k}"] for k in ("one", "two")]
    return {
        "split": split,
        "annotator": ANNOTATORS[row["source"]],
        "choice": row["preference-data"],
        "recipes": [int(s["index"]) for s in two],
        # Named one by one: the order of the keys in the origin is an accident.
        "aspects": [[s["summary-score"][name] for name in ASPECTS] for s in two],
        "first": two[0]["summary-text"],
        "second": two[1]["summary-text"],
    }


def embed_opinpref(folder: str | Path | None = None) -> Tensor:
    """Write embeddings.safetensors beside the OpinPref pairs (MINILM, half precision); [N,2,D]."""
    from safetensors.torch import save_file

    from rlgenkit.rewards.sentences import embed_sentences, load_sentence_encoder

    folder = Path(folder or OPINPREF)
    pairs = load_opinpref(folder)
    flat = [text for pair in pairs.texts for text in pair]
    made = embed_sentences(load_sentence_encoder(), flat).view(len(pairs.texts), 2, -1)
    save_file({"summaries": made.half()}, folder / "embeddings.safetensors")
    return made


if __name__ == "__main__":
    make_opinpref(sys.argv[1]) if sys.argv[1:] else embed_opinpref()
