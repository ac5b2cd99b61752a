"""The world of arithmetic chains by brute force, its small language model, and the GSM8K pack."""

import json
from types import FunctionType, SimpleNamespace

import pytest
import torch

from rlgenkit import models
from rlgenkit import worlds
from data.models.arithmetic import train as training
from data.models.recipes import MODELS
from rlgenkit.worlds import arithmetic as A
from data.human.gsm8k.make import make_gsm8k
from rlgenkit.worlds.gsm8k import SOLVERS, load_gsm8k
from tests.notebook_code import definitions


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def do(step, value):
    """One step in plain Python."""
    digit = int(step[1])
    return {"+": value + digit, "-": value - digit, "*": value * digit}[step[0]] % 10


def rows_of(chains):
    return [
        (int(s), [A.STEPS[i] for i in row]) for s, row in zip(chains.start, chains.steps.tolist())
    ]


def test_solutions_and_slips_equal_plain_python():
    chains = A.sample_chains(300, 4, gen())
    values = A.attempts(chains, gen(1), slip=0.3)
    right, slips, fine = A.solve(chains), A.slips(chains, values), A.is_right(chains, values)
    for (start, steps), truth, wrote, bad, ok in zip(
        rows_of(chains), right.tolist(), values.tolist(), slips.tolist(), fine.tolist()
    ):
        value, before = start, start
        for step, t, w, b in zip(steps, truth, wrote, bad):
            value = do(step, value)
            assert t == value and b == (w != do(step, before))
            before = w
        assert ok == (wrote[-1] == value)
        assert any(bad) or ok  # without a slip the result is right
        assert sum(bad) != 1 or not ok  # one slip always spoils it


def test_every_step_can_be_undone():
    assert (A.TABLE.sort(1).values == torch.arange(10)).all()


def test_rates_of_slips_and_of_the_weak_teacher():
    chains = A.sample_chains(20_000, 4, gen(2))
    assert A.operator_of(chains.steps).flatten().bincount().min() > 26_000 * 0.98
    values = A.attempts(chains, gen(3))
    slips = A.slips(chains, values)
    assert abs(slips.float().mean() - A.SLIP) < 0.005
    flags, says_wrong = A.weak_critiques(chains, values, gen(4))
    for index, name in enumerate("+-*"):
        here = slips & (A.operator_of(chains.steps) == index)
        assert abs(flags[here].float().mean() - A.HITS[name]) < 0.02
    assert abs(flags[~slips & (values == 9)].float().mean() - A.NINE) < 0.02
    assert abs(flags[~slips & (values != 9)].float().mean() - A.FALSE) < 0.01
    assert abs((says_wrong == flags.any(1)).float().mean() - A.CONSISTENT) < 0.01


def obey_by_hand(start, steps, wrote, flags, says_wrong):
    old, new, made = start, start, []
    for step, w, flag in zip(steps, wrote, flags):
        if says_wrong and flag:
            value = do(step, new) if w != do(step, old) else (do(step, new) + 1) % 10
        else:
            value = w if new == old else do(step, new)
        old, new = w, value
        made.append(value)
    return made


def test_obedience_equals_plain_python():
    chains = A.sample_chains(400, 4, gen(5))
    values = A.attempts(chains, gen(6), slip=0.3)
    flags = torch.rand(values.shape, generator=gen(7)) < 0.4
    says_wrong = torch.rand(400, generator=gen(8)) < 0.7
    refined = A.obey(chains, values, flags, says_wrong)
    for i, (start, steps) in enumerate(rows_of(chains)):
        assert refined[i].tolist() == obey_by_hand(
            start, steps, values[i].tolist(), flags[i].tolist(), bool(says_wrong[i])
        )
    assert torch.equal(refined[~says_wrong], values[~says_wrong])


def test_perfect_critiques_heal_and_false_ones_harm():
    chains = A.sample_chains(500, 4, gen(9))
    values = A.attempts(chains, gen(10), slip=0.3)
    slips, yes = A.slips(chains, values), torch.ones(500, dtype=torch.bool)
    assert torch.equal(A.obey(chains, values, slips, yes), A.solve(chains))
    one = torch.zeros(500, 4, dtype=torch.bool)
    one[torch.arange(500), torch.randint(4, (500,), generator=gen(11))] = True
    harmed = A.obey(chains, A.solve(chains), one, yes)
    assert not A.is_right(chains, harmed).any()


def test_a_chain_has_a_step():
    with pytest.raises(ValueError, match="more steps"):
        A.sample_chains(5, 0, gen())


def test_prompts_and_readings_are_each_others_inverse():
    chains = A.sample_chains(50, 3, gen(14))
    values = A.attempts(chains, gen(15), 0.5)
    flags, says_wrong = A.weak_critiques(chains, values, gen(16))
    end = torch.full((50, 1), A.END)
    ids = torch.cat([A.critique_ids(flags, says_wrong), end], 1)
    read = A.read_critiques(ids, 3)
    assert read[2].all() and torch.equal(read[0], flags) and torch.equal(read[1], says_wrong)
    again, fine = training.read_values(torch.cat([A.values_ids(values), end], 1), 3)
    assert fine.all() and torch.equal(again, values)
    line = A.text(A.prompt_ids("refine", chains, values, ids[:, :-1]))[0]
    start, steps = rows_of(chains)[0]
    marks = " ".join("bad" if f else "ok" for f in flags[0].tolist())
    expected = (
        f"refine {start} {' '.join(steps)} : {' '.join(map(str, values[0].tolist()))} : {marks}"
    )
    assert line == expected + (" W :" if says_wrong[0] else " C :")
    assert (
        training.build_tokenizer()(line).input_ids
        == A.prompt_ids("refine", chains, values, ids[:, :-1])[0].tolist()
    )


@pytest.mark.parametrize(
    "said",
    [
        "ok ok C",
        "ok ok ok C W .",
        "ok ok ok C",
        "ok ok C .",
        "ok ok ok ok .",
        "ok ok ok W C .",
        "C .",
        ".",
        "ok ok 5 C .",
        "ok ok ok 3 .",
    ],
)
def test_unclear_critiques_have_no_verdict(said):
    ids = torch.tensor([[A.VOCABULARY.index(w) for w in said.split()]])
    flags, says_wrong, readable = A.read_critiques(ids, 3)
    assert not readable.any() and not flags.any() and not says_wrong.any()


@pytest.mark.parametrize("said", ["1 2", "1 2 ok .", "1 2 3", "1 2 3 4 .", "."])
def test_unclear_attempts_are_unreadable(said):
    ids = torch.tensor([[A.VOCABULARY.index(w) for w in said.split()]])
    values, readable = training.read_values(ids, 3)
    assert not readable.any() and (values == 0).all()


def test_training_examples_follow_the_world():
    prompts, answers = training.examples("refine", 200, 4, gen(17))
    chains = A.Chains(
        prompts[:, 1] - A.VOCABULARY.index("0"), prompts[:, 2:6] - A.VOCABULARY.index("+1")
    )
    values = prompts[:, 7:11] - A.VOCABULARY.index("0")
    end = torch.full((200, 1), A.END)
    flags, says_wrong, _ = A.read_critiques(torch.cat([prompts[:, 12:17], end], 1), 4)
    assert torch.equal(
        training.read_values(answers, 4)[0], A.obey(chains, values, flags, says_wrong)
    )
    model = training.build()
    expected = -torch.stack(
        [
            model(torch.cat([prompts, answers], 1))
            .logits.log_softmax(-1)[i, prompts.shape[1] - 1 : -1]
            .gather(1, answers[i, :, None])
            .mean()
            for i in range(4)
        ]
    ).mean()
    torch.testing.assert_close(training.loss(model, prompts[:4], answers[:4]), expected)


def test_packing_tasks_of_unequal_length_changes_nothing():
    model, parts = training.build(), [training.examples(task, 3, 4, gen(18)) for task in A.TASKS]
    assert len({p.shape[1] + a.shape[1] for p, a in parts}) == 3
    alone = sum(training.loss(model, *part) for part in parts) / 3
    torch.testing.assert_close(training.packed_loss(model, parts), alone)


def test_weights_and_a_read_attempt_enter_the_packed_loss():
    model, parts = training.build(), [training.examples(task, 3, 4, gen(18)) for task in A.TASKS]
    alone, (prompt, answer) = [training.loss(model, *part) for part in parts], parts[1]
    whole = torch.cat([prompt, answer], 1)
    read = training.loss(
        model, whole[:, :7], whole[:, 7:11]
    )  # behind "critique", start, steps, colon
    assert A.text(whole[:1, 6:7]) == A.text(whole[:1, 11:12]) == [":"]
    expected = (alone[0] + 2 * alone[1] + alone[2] + read) / 5
    torch.testing.assert_close(
        training.packed_loss(model, parts, (1.0, 2.0, 1.0), read=1), expected
    )


def test_the_exact_teacher_marks_the_slips_and_nothing_else():
    prompts, answers = training.examples("critique", 200, 4, gen(20), exact=True)
    chains = A.Chains(
        prompts[:, 1] - A.VOCABULARY.index("0"), prompts[:, 2:6] - A.VOCABULARY.index("+1")
    )
    slips = A.slips(chains, prompts[:, 7:11] - A.VOCABULARY.index("0"))
    flags, says_wrong, fine = A.read_critiques(answers, 4)
    assert fine.all() and torch.equal(flags, slips) and torch.equal(says_wrong, slips.any(1))


@pytest.mark.skipif(not (MODELS / "arithmetic").is_dir(), reason="the model is not trained yet")
def test_committed_model_is_as_good_as_its_card_says():
    model, tokenizer = models.load_language_model("data/models/arithmetic")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer.convert_ids_to_tokens(list(range(len(A.VOCABULARY)))) == list(A.VOCABULARY)
    size = sum(f.stat().st_size for f in (MODELS / "arithmetic").rglob("*"))
    assert size <= 12e6
    told = json.loads((MODELS / "arithmetic" / "quality.json").read_text())["quality"]["4 steps"]
    found = training.quality(model, 600)
    for name, share in found.items():
        assert abs(share - told[name]) < 0.08, name
    assert 0.4 <= told["first attempt right"] <= 0.7  # headroom for a critic
    assert told["verdict right"] <= 0.75  # a weak judge
    assert told["right after a perfect critique"] >= 0.9 and told["critique readable"] >= 0.98


# ---- notebook 27


def test_a_second_stage_sees_other_answers_than_the_first():
    of_27 = definitions("27")
    chains = A.sample_chains(500, 4, gen(21))
    criticized, quiet = (
        [],
        SimpleNamespace(steps=lambda count, *_: range(count), log=lambda *_, **__: None),
    )

    def converse(chains, values, ids, *rest):
        criticized.append(chains.steps)
        return of_27.converse(chains, values, ids, *rest)

    given = {
        "run": quiet,
        "pool": (chains, A.attempts(chains, gen(22))),
        "p": SimpleNamespace(prompts=8, critiques=2, lr=1e-4, kl=0.02),
        "converse": converse,
    }
    train = FunctionType(
        of_27.train.__code__, of_27.train.__globals__ | given, argdefs=of_27.train.__defaults__
    )
    critic = models.language_policy(
        "data/models/arithmetic", new=6, temperature=0.7, end=A.END, pad=A.PAD
    )
    for stage in (1, 1, 2):
        train("critic", 5, critic, of_27.pay_verdict, 1, stage)
    assert torch.equal(criticized[0], criticized[1])
    assert not torch.equal(criticized[0], criticized[2])


@pytest.mark.parametrize("mood", ["STUBBORN", "MILD"])
def test_an_actor_takes_better_revisions_more_readily(mood):
    of_27, chains = definitions("27"), A.sample_chains(50, 4, gen(23))
    values, truth = A.attempts(chains, gen(24), 1.0), A.solve(chains)
    better, other = getattr(of_27, mood)
    for revised, chance in ((truth, better), (values, other)):
        found = of_27.chance_to_listen(chains, values, revised, (better, other))
        assert found.tolist() == pytest.approx([chance] * 50)


# ---- GSM8K


def test_committed_solutions_are_the_known_ones():
    data = worlds.load_gsm8k()
    assert len(data.questions) == len(set(data.questions)) == 1319 == len(data.answers)
    assert data.right.shape == (1319, 4) and data.right.sum(0).tolist() == [286, 515, 458, 742]

    # labels agree with the final answers that the solutions state
    def number(text):
        return float(text.replace(",", "").replace("$", ""))

    agree = []
    for answer, texts, labels in zip(data.answers, data.texts, data.right.tolist()):
        for text, label in zip(texts, labels):
            try:
                agree.append((number(text.rsplit("A: ", 1)[1]) == number(answer)) == label)
            except (IndexError, ValueError):
                continue
    assert len(agree) > 5000 and sum(agree) / len(agree) > 0.995


def test_solutions_are_made_from_the_origins_rows(tmp_path):
    row = {"question": "2+2?", "ground_truth": "2+2=4\nA: 4"} | {
        s: {"is_correct": i == 2, "solution": f"A: {i + 2}"} for i, s in enumerate(SOLVERS)
    }
    (tmp_path / "example_model_solutions.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "LICENSE").write_text("MIT")
    make_gsm8k(tmp_path, tmp_path / "made")
    data = load_gsm8k(tmp_path / "made")
    assert data.answers == ("4",) and data.texts == (("A: 2", "A: 3", "A: 4", "A: 5"),)
    assert data.right.tolist() == [[False, False, True, False]]
    assert (tmp_path / "made" / "LICENSE").read_text() == "MIT"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}\n",
        "no json\n",
        '{"question": "q", "answer": "1", "right": [1, 0, 0, 0], "solutions": ["", "", "", ""]}\n',
        '{"question": "q", "answer": "1", "right": [true], "solutions": [""]}\n',
    ],
)
def test_torn_solution_files_are_refused_in_one_sentence(tmp_path, text):
    (tmp_path / "solutions.jsonl").write_text(text)
    with pytest.raises(ValueError, match="solutions.jsonl"):
        load_gsm8k(tmp_path)
