"""The LLMBar pack: the judges' published accuracies, what a verdict means, how it is made."""

import json

import pytest
import torch

from data.human.llmbar.make import ORDERS, make_llmbar
from rlgenkit.worlds import load_llmbar
from rlgenkit.worlds.llmbar import JUDGES, LLMBAR, STRATEGIES

# Accuracy in percent, both orders, unreadable ones wrong: mean over the four adversarial subsets,
# and on the natural one; recomputed elsewhere from the origin's files.
PLAIN = {"GPT-4": (80.8, 95.5), "ChatGPT": (30.6, 81.5), "ChatGPT-0301": (40.5, 84.0)}
PLAIN |= {"PaLM2": (65.2, 83.0), "LLaMA2": (37.1, 80.5), "Falcon": (51.4, 74.0)}
METRICS = {"GPT-4": (82.0, 93.0), "ChatGPT": (37.3, 81.5), "ChatGPT-0301": (42.4, 81.5)}
METRICS |= {"PaLM2": (66.1, 81.0), "LLaMA2": (38.3, 79.5), "Falcon": (50.2, 68.0)}


def test_committed_pairs_are_whole():
    pairs = load_llmbar()
    assert len(pairs.instructions) == len(pairs.texts) == len(pairs.criteria) == 419
    assert pairs.subset.bincount().tolist() == [100, 134, 92, 47, 46]
    assert pairs.first_wins.unique().tolist() == [0, 1] and int(pairs.first_wins.sum()) == 206
    assert pairs.verdicts.shape == (419, 6, 4, 2) and int(pairs.verdicts.isnan().sum()) == 56
    assert pairs.verdicts[~pairs.verdicts.isnan()].unique().tolist() == [0, 1]
    written = [text for six in pairs.criteria for text in six]
    assert len(written) == 419 * 6 and written.count("") == 5
    assert (LLMBAR / "pairs.jsonl").stat().st_size < 2e6
    assert "MIT" in (LLMBAR / "LICENSE").read_text()


@pytest.mark.parametrize("strategy, known", [("Vanilla", PLAIN), ("Metrics", METRICS)])
def test_accuracies_of_the_judges_are_the_measured_ones(strategy, known):
    pairs = load_llmbar()
    right = (pairs.verdicts == pairs.first_wins[:, None, None, None]).double().mean(-1)
    right = 100 * right[:, :, STRATEGIES.index(strategy)]
    by_subset = torch.stack([right[pairs.subset == k].mean(0) for k in range(5)])
    for k, judge in enumerate(JUDGES):
        found = float(by_subset[1:, k].mean()), float(by_subset[0, k])
        assert found == pytest.approx(known[judge], abs=0.06), judge


def test_verdicts_of_both_orders_name_the_answer_not_its_place():
    """A judge that reads agrees with itself; one that prefers the first place contradicts itself."""
    verdicts = load_llmbar().verdicts[:, :, STRATEGIES.index("Vanilla")]
    same = (verdicts[..., 0] == verdicts[..., 1]).double().mean(0)
    assert same[JUDGES.index("GPT-4")] > 0.9 > 0.6 > same[JUDGES.index("Falcon")]


def test_make_orders_judges_and_strategies_by_name(tmp_path):
    said = {f"{j}/{s}": dict.fromkeys(ORDERS, "2") for j in JUDGES[::-1] for s in STRATEGIES}
    said["Falcon/Swap"] = {"swap_true": "1", "swap_false": None}
    row = {"subset": "Adversarial/GPTOut", "index": 7, "input": "do", "label": 1}
    row |= {"output_1": "a", "output_2": "b", "verdicts": said}
    row["criteria"] = {judge: f"by {judge}\n" for judge in JUDGES[::-1]} | {"PaLM2": " "}
    (tmp_path / "llmbar_with_judges.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "LICENSE").write_text("MIT")
    make_llmbar(tmp_path, tmp_path / "made")
    pairs = load_llmbar(tmp_path / "made")
    assert pairs.subsets[pairs.subset[0]] == "GPTOut" and pairs.first_wins.tolist() == [1]
    assert pairs.instructions == ("do",) and pairs.texts == (("a", "b"),)
    assert pairs.criteria == (tuple("" if j == "PaLM2" else f"by {j}" for j in JUDGES),)
    last = pairs.verdicts[0, JUDGES.index("Falcon"), STRATEGIES.index("Swap")]
    assert last[0].isnan() and last[1] == 1 and int((pairs.verdicts == 0).sum()) == 46
    assert (tmp_path / "made" / "LICENSE").read_text() == "MIT"
