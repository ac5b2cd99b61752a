"""Exercises in notebooks/checks: what is found wrong and how it is said, questions, teaching copies."""

import ast
import inspect
import json
import textwrap
from types import SimpleNamespace

import pytest
import torch

from rlgenkit import workbook as wb
from ci import export, lint
from rlgenkit.commands import committed
from rlgenkit.commands.places import NOTEBOOKS, TEMPLATE, series
from rlgenkit.workbook import exercises
from rlgenkit.workbook.diagnosis import Answer, difference, same

CHECKS = '''
import torch
from rlgenkit import workbook as wb

def total(x):
    """[B] -> scalar."""
    return x.sum()

EXERCISES = {"98.1": wb.Exercise(total, lambda g: [torch.randn(6, generator=g)],
                                 {"no squares": lambda x: (x**2).sum()}, hints=["Add."],
                                 minutes=5, difficulty=1)}
QUIZZES = {"98.q1": wb.Quiz("Up or down?", ["up", "down"], 1, "It sinks.")}
'''


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """Globals of a notebook 98_trial whose checks file holds one exercise and one question."""
    (tmp_path / "trial.py").write_text(CHECKS, encoding="utf-8")
    monkeypatch.setattr(exercises, "FOLDER", tmp_path)
    return {"wb": wb, "torch": torch, "_rlgenkit_notebook": "98_trial"}


# --- checks by number


def said(code, namespace, capsys):
    exec(code, namespace)
    return capsys.readouterr().out.strip()


def test_an_exercise_is_found_by_its_number(namespace, capsys):
    right = said('wb.check("98.1", lambda x: x.sum())', namespace, capsys)
    assert right == "Exercise 98.1 (5 minutes, difficulty 1 of 5): correct on 3 random inputs"
    assert said('wb.check("98.1", lambda x: (x**2).sum())', namespace, capsys).endswith(
        "no squares"
    )
    stub = "def f(x):\n    raise NotImplementedError\nwb.check('98.1', f)"
    assert "not yet" in said(stub, namespace, capsys)


def test_parameters_say_whose_exercises_they_are(namespace):
    space = {
        "profile": "quick",
        "seed": 0,
        "n_seeds": 1,
        "device": "cpu",
        "out_dir": None,
        "__annotations__": {
            "profile": str,
            "seed": int,
            "n_seeds": int,
            "device": str,
            "out_dir": str,
        },
    }
    wb.parameters(space, notebook="98_trial", table="quick\nsize  1")
    assert space["_rlgenkit_notebook"] == "98_trial"


@pytest.mark.parametrize(
    "code, sentence",
    [
        ('wb.check("98.2", len)', "notebooks/checks/trial.py has no exercise 98.2; it has 98.1"),
        ('wb.predict("98.q2")', "notebooks/checks/trial.py has no quiz 98.q2; it has 98.q1"),
        ('_rlgenkit_notebook = "97_else"\nwb.check("97.1", len)', "no notebooks/checks/else.py"),
        ('del _rlgenkit_notebook\nwb.check("98.1", len)', "run the cell with wb.parameters first"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(namespace, code, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        exec(code, namespace)


def test_the_reference_itself_does_not_count(namespace):
    found = exercises.load_checks("98_trial")["EXERCISES"]["98.1"]
    assert found.outcome(found.reference).status == "wrong"
    assert found.outcome(lambda x: found.reference(x)).status == "pass"
    assert exercises.load_checks("98_trial")["EXERCISES"]["98.1"] is found  # read once


def test_a_notebook_that_holds_its_reference_may_show_it_as_the_solution(capsys):
    wb.check("97.1", torch.sum, wb.Check(torch.sum, lambda g: [torch.randn(4, generator=g)]))
    assert capsys.readouterr().out == "Exercise 97.1: correct on 3 random inputs\n"


def test_bad_exercises_are_refused():
    with pytest.raises(ValueError, match="difficulty is 1 to 5, not 9"):
        wb.Exercise(torch.sum, lambda g: [torch.ones(2)], difficulty=9)
    with pytest.raises(ValueError, match="no index into 2"):
        wb.Quiz("?", ["a", "b"], 2, "")


# --- what the messages say

R = torch.Generator().manual_seed(0)
X, Y = torch.randn(4, 6, generator=R), torch.randn(4, 3, generator=R)


def wrong(reference, student, *inputs):
    found = wb.Exercise(
        reference,
        lambda g: [x.clone() for x in inputs] if inputs else [torch.randn(4, 6, generator=g)],
    )
    outcome = found.outcome(student)
    assert outcome.status == "wrong"
    return outcome.message


@pytest.mark.parametrize(
    "reference, student, words",
    [
        (lambda x: x.sum(1), lambda x: -x.sum(1), "the sign is wrong: entry"),
        (lambda x: x.sum(1), lambda x: x.mean(1), "a mean where a sum belongs (over 6): entry"),
        (lambda x: x.mean(1), lambda x: x.sum(1), "a sum where a mean belongs (over 6): entry"),
        (lambda x: x.sum(), lambda x: x.mean(), "a mean where a sum belongs (over 24): it is"),
        (lambda x: x.sum(1), lambda x: 2.5 * x.sum(1), "off by a constant factor of 2.5: entry"),
        (lambda x: x.sum(1), lambda x: x.sum(1) - 3, "off by a constant of -3: entry"),
        (
            lambda x: x.sum(1),
            lambda x: x.sum(1).flip(0),
            "the right numbers in the wrong order: entry",
        ),
        (lambda x: x @ x.T + x[:, :4], lambda x: (x @ x.T + x[:, :4]).T, "in the wrong order"),
        (lambda x: x.sum(1), lambda x: (x - 9).log().sum(1), "it holds nan (not a number)"),
        (lambda x: x.sum(1), lambda x: x.sum(1) ** 2, "not quite: entry"),
        (
            lambda x: x,
            lambda x: x.T,
            "a 6 x 4 table, expected a 4 x 6 table: rows and columns are exchanged",
        ),
        (
            lambda x: x.sum(),
            lambda x: x.sum(1),
            "4 numbers in a row, expected a single number: a mean or a",
        ),
        (lambda x: (x, x), lambda x: x, "it returns one value, expected 2 values"),
        (
            lambda x: (x.sum(), x),
            lambda x: (x.mean(), x),
            "value 1 of 2: a mean where a sum belongs",
        ),
        (lambda x: "up", lambda x: "down", "not quite: 'down', expected 'up'"),
        (lambda x: x.sum(), lambda x: "none", "a str, expected a single number"),
    ],
)
def test_mistakes_are_named(reference, student, words):
    assert words in wrong(reference, student)


def test_a_place_that_is_nan_in_both_is_not_the_worst():
    def right(x):
        return torch.cat([x[0, :1] * torch.nan, x[0]])

    assert "entry 3 is" in wrong(right, lambda x: right(x).index_fill(0, torch.tensor(3), 50.0))
    late = wrong(right, lambda x: right(x).index_fill(0, torch.tensor(3), torch.nan))
    assert "entry 3 is nan, expected" in late and not late.endswith("nan")


def test_wrong_gradients_are_named():
    def inputs(generator):
        return [torch.randn(6, generator=generator, requires_grad=True) for _ in range(2)]

    right = wb.Exercise(lambda a, b: (a.detach() * b).sum(), inputs)
    for student, words in (
        (lambda a, b: (a * b).sum(), "gradient of tensor 1 is not: it must be zero"),
        (lambda a, b: (a.detach() * b.detach()).sum(), "gradient of tensor 2 is not: none"),
        (
            lambda a, b: (a.detach() * b).sum() + 0 * b.sum() + (b - b.detach()).sum(),
            "gradient of tensor 2 is not: something is detached",
        ),
    ):
        assert words in right.outcome(student).message


def test_a_difference_in_a_later_trial_is_named_too():
    one, two = torch.ones(3), 2 * torch.ones(3)
    mine, right = ([Answer([v], [], set()) for v in values] for values in ((one, one), (one, two)))
    assert "entry 0 is 1, expected 2" in difference(mine, right, 1e-5)


# --- questions


def test_a_question_without_a_front_end_has_its_answer_folded(namespace, capsys):
    text = said('guess = wb.predict("98.q1")', namespace, capsys)
    assert text.startswith("**Predict first.** Up or down?") and "- up\n- down" in text
    assert text.index("<details>") < text.index("It sinks.") and namespace["guess"] == {}


def test_a_question_in_a_live_notebook_keeps_a_static_twin(namespace, monkeypatch):
    shown = []
    monkeypatch.setattr(exercises, "headless", lambda: False)

    def display(thing, **options):
        shown.append(thing)
        return SimpleNamespace(update=lambda data, raw: shown.append(data))

    monkeypatch.setattr("IPython.display.display", display)
    exec('guess = wb.predict("98.q1")', namespace)
    buttons, twin = shown
    assert "Up or down?" in twin["text/markdown"] and "It sinks." not in json.dumps(twin)
    assert list(buttons.options) == ["up", "down"] and buttons.index is None
    buttons.index = 0
    assert namespace["guess"] == {"guess": 0}
    assert "My guess: up. **It is: down.** It sinks." in shown[-1]["text/markdown"]


# --- teaching copies

CODE = '''def f(a, b):
    """Doc."""
    # a hint too many
    x = a
    return x + b
    # another

def g(a): return a

K = 3

def h(a,
      b):
    for i in a:
        b += i

    return b

print(f(1, 2))'''


def test_bodies_go_and_all_else_stays():
    assert (
        export.without_bodies(CODE)
        == '''def f(a, b):
    """Doc."""
    raise NotImplementedError

def g(a):
    raise NotImplementedError

K = 3

def h(a,
      b):
    raise NotImplementedError

print(f(1, 2))'''
    )


def cell(kind, source, *tags):
    row = {
        "cell_type": kind,
        "id": str(abs(hash(source)) % 10**8),
        "source": source,
        "metadata": {"tags": [*tags]},
    }
    return (
        row
        if kind == "markdown"
        else row
        | {
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "7"}],
            "execution_count": 1,
        }
    )


OLD = [
    cell("code", CODE, "stub"),
    cell("code", 'wb.check("98.1", f)', "check"),
    cell(
        "markdown",
        "<details><summary>Hint</summary>Think.</details>\n\nThe solution, with its check. Then go "
        "further: try 3.\n\n**Next**",
    ),
    cell("code", "secret = 1", "solution"),
    cell(
        "markdown",
        "Before.\n\n<details><summary>Solution</summary>\n\nsecret\n\n</details>\n\nAfter.",
    ),
    cell("markdown", "The solution, with an assertion:"),
    cell("code", "assert secret", "solution"),
    cell("code", 'guess = wb.predict("98.q1")', "exercise"),
]


def test_student_copies_hold_no_answer():
    out = export.student({"cells": OLD, "metadata": {"rlgenkit": {}}})
    texts = [c["source"] for c in out["cells"]]
    assert "secret" not in json.dumps(out) and "solution" not in json.dumps(out).lower()
    assert texts[1:] == [
        'wb.check("98.1", f)',
        "<details><summary>Hint</summary>Think.</details>\n\nThen go further: try 3.\n\n**Next**",
        "Before.\n\nAfter.",
        'guess = wb.predict("98.q1")',
    ]
    assert all(c["outputs"] == [] for c in out["cells"] if c["cell_type"] == "code")
    assert OLD[0]["source"] == CODE  # the notebook itself is untouched


def test_solutions_copies_show_what_the_checks_hold(namespace):
    answers = export.answers_of("98_trial")
    assert (
        "return x.sum()" in answers["98.1"]
        and answers["98.q1"] == "**Answer of 98.q1**: down. It sinks."
    )
    out = [c["source"] for c in export.solutions({"cells": OLD, "metadata": {}}, answers)["cells"]]
    assert out[out.index('wb.check("98.1", f)') + 1] == answers["98.1"]
    assert out[-1] == answers["98.q1"] and out[0] == CODE and "**Solution**" in out
    assert export.answers_of("97_none") == {}


NEW = [path for path in [*series(), TEMPLATE] if lint.is_new(path)]


def forms(code):
    """Syntax of all functions' bodies, without docstrings, in a text of code."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            found.add(json.dumps([ast.dump(statement) for statement in body]))
    return found


@pytest.mark.parametrize("path", NEW, ids=lambda path: path.stem)
def test_no_answer_survives_in_student_copies(path):
    nb = committed.read(path)
    if any("solution" in lint.tags(c) for c in nb["cells"]):
        pytest.skip(f"{path.stem} is being rewritten")
    out = export.student(nb)
    committed.text_of(committed.normalize(out))
    code = "\n".join(lint.source(c) for c in out["cells"] if c["cell_type"] == "code")
    left, text = forms(code), json.dumps(out)
    for c in nb["cells"]:
        if "stub" in lint.tags(c):
            assert not forms(lint.source(c)) & left
    checks = exercises.load_checks(path.stem)
    for number, exercise in checks["EXERCISES"].items():
        assert f'"{number}"' in code, f"nothing asks for {number}"
        source = textwrap.dedent(inspect.getsource(exercise.reference))
        assert not source.startswith("def") or not forms(source) & left
    for number, quiz in checks["QUIZZES"].items():
        assert f'"{number}"' in code and quiz.why not in text


@pytest.mark.parametrize("path", [*series(), TEMPLATE], ids=lambda path: path.stem)
def test_every_student_copy_is_a_notebook_without_solutions(path):
    out = export.student(committed.read(path))
    committed.text_of(committed.normalize(out))
    text = "\n".join(lint.source(c) for c in out["cells"])
    assert "<summary>Solution" not in text and "The solution, with" not in text


WITH_ANSWERS = [path for path in series() if not exercises.checks_file(path.stem).is_file()]


@pytest.mark.parametrize("path", WITH_ANSWERS, ids=lambda path: path.stem)
def test_answers_that_stand_in_a_notebook_leave_its_student_copy(path, tmp_path, monkeypatch):
    """Cells with references and answers become files beside the copy, which the cell runs."""
    monkeypatch.setattr(export, "BUILD", tmp_path)
    (copy,) = export.write_copies([path], "student")
    code = [lint.source(c) for c in committed.read(copy)["cells"] if c["cell_type"] == "code"]
    assert not any("wb.Check(" in text or "wb.predict(" in text for text in code)
    runs = [text.split()[-1] for text in code if text.startswith("%run")]
    kept = [(copy.parent / name).read_text(encoding="utf-8") for name in runs]
    for c in committed.read(path)["cells"]:
        if "check" in lint.tags(c):
            assert lint.source(c) + "\n" in kept


def test_checks_belong_to_notebooks():
    slugs = {path.stem.split("_", 1)[1] for path in [*series(), TEMPLATE]}
    assert {path.stem for path in (NOTEBOOKS / "checks").glob("*.py")} <= slugs


# --- answers over seeds

CHECKED = [path for path in [*series(), TEMPLATE] if exercises.checks_file(path.stem).is_file()]


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.stem)
def test_exercises_and_answers_hold_over_seeds(path):
    """Each known mistake is told from the right answer whatever is drawn, not only at the draws that
    the reader meets; a question's answer is right at ten seeds where it says how to see."""
    checks = exercises.load_checks(path.stem)

    def answers(exercise, function, first):
        seeds = range(first, first + exercise.trials)
        draws = [(k, torch.Generator().manual_seed(k)) for k in seeds]
        return [exercises._answer(function, exercise.inputs(draw), k) for k, draw in draws]

    for number, exercise in checks["EXERCISES"].items():
        for first in range(100, 200, 20):
            right = answers(exercise, exercise.reference, first)
            for hint, function in exercise.wrong.items():
                wrong = answers(exercise, function, first)
                assert not same(wrong, right, exercise.tolerance), (number, hint, first)
    for number, quiz in checks["QUIZZES"].items():
        assert quiz.holds is None or all(quiz.holds(seed) for seed in range(10)), number


def test_less_guidance_takes_contrast_from_the_pictures_of_the_tour():
    """The answer to the first question of 00, at three seeds and fewer steps."""
    from rlgenkit import models, samplers

    policy = models.load_policy("data/models/flow", "cpu")
    texts = models.embed(policy, ["a red cat", "three green hearts", "two blue teapots"])
    for seed in range(3):
        noise = samplers.initial_noise(3, policy.latent_shape, torch.Generator().manual_seed(seed))
        contrast = []
        for guidance in (3.0, 1.0):
            with torch.no_grad():
                denoise = models.denoiser(policy, texts, guidance)
                path = samplers.rollout(denoise, samplers.flow_table(8, kind="ode"), noise)
                contrast.append(models.decode(policy, path.final).std((1, 2, 3)).mean())
        assert contrast[1] < 0.95 * contrast[0], seed


def test_an_answer_that_depends_on_the_seed_is_found():
    quiz = wb.Quiz("Up?", ["yes", "no"], 0, "It climbs.", holds=lambda seed: seed != 7)
    assert not all(quiz.holds(seed) for seed in range(10))
