"""The annotator: rounds of clicks by code, the simulated stand-in, a figure without widget state."""

import json
import os
from types import SimpleNamespace

import nbformat
import pytest
import torch

from rlgenkit import workbook as wb
from rlgenkit.workbook import annotate as an
from rlgenkit.workbook import widgets


class Model:
    """A picture model of one number, its brightness; learns by moving toward what was preferred."""

    def __init__(self):
        self.level, self.seen, self.draws = 0.5, [], 0

    def draw(self):
        self.draws += 1
        spread = torch.tensor([0.1, -0.1, 0.05])  # the left picture is brighter in pairs 0 and 2
        left = (self.level + spread).view(3, 1, 1, 1).expand(3, 3, 4, 4)
        right = (self.level - spread).view(3, 1, 1, 1).expand(3, 3, 4, 4)
        self.gain = spread
        return left, right, ["a red cat", "a blue star", "a green tree"]

    def train(self, labels):
        self.seen.append(labels.clone())
        self.level += float((labels * self.gain).sum())

    def look(self):
        return torch.full((2, 3, 4, 4), self.level).clamp(0, 1)


def brighter(left, right):
    return (left - right).mean((1, 2, 3)).sign()


def session(model, rounds=2):
    return an.Annotation(model.draw, brighter, model.train, model.look, rounds, ["a", "b"])


def test_a_person_is_heard_in_order_and_the_model_follows():
    model = Model()
    s = session(model)
    s.now.answers += [1.0, 0.5, 0.0]
    assert s.now.complete and not s.done and model.seen == []
    assert s.learn()  # there is another round
    assert model.seen[0].tolist() == [1, 0, -1] and model.draws == 2 and not s.now.complete
    assert [p.mean().item() for p in s.pictures] == pytest.approx([0.5, 0.55])
    s.now.answers.append(0.5)
    s.now.leave()  # the annotator answers pairs 1 and 2, not 0 and 1
    assert not s.learn()
    assert s.done and model.draws == 2 and s.clicks == 4
    assert s.labels[1].tolist() == [0, -1, 1] and s.simulated[1].tolist() == [1, -1, 1]
    assert s.agreement() == pytest.approx(3 / 6)
    alt = s.picture().alt
    assert "2 rounds" in alt and "round 2 0.200" in alt


def test_what_does_not_fit_is_refused():
    model = Model()
    s = session(model, 1)
    with pytest.raises(ValueError, match="without an answer"):
        s.learn()
    s.now.leave()
    s.learn()
    with pytest.raises(ValueError, match="without an answer"):
        s.learn()
    with pytest.raises(ValueError, match="rounds"):
        session(model, 0)
    with pytest.raises(ValueError, match="titles"):
        an.Annotation(model.draw, brighter, model.train, model.look, 1, ["a"])
    with pytest.raises(ValueError, match="equally many"):
        an.Annotation(
            lambda: (torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4), ["x"]),
            brighter,
            model.train,
            model.look,
            1,
            ["a", "b"],
        )


@pytest.fixture
def sent(monkeypatch):
    """Everything that is displayed and updated, as (kind, data, options); a person is there."""
    from IPython import display as ipython

    sent = []

    class Handle:
        def update(self, data, **rest):
            sent.append(("update", data, rest))

    def display(data, **rest):
        sent.append(("display", data, rest))
        return Handle()

    monkeypatch.setattr(ipython, "display", display)
    monkeypatch.setattr(an, "headless", lambda: False)
    monkeypatch.setattr(widgets, "headless", lambda: False)
    return sent


def figures(sent):
    return [row for row in sent if isinstance(row[1], dict) and "image/png" in row[1]]


def texts(sent):
    """What the static twin below the buttons said, one text after the other."""
    return [data["text/plain"] for _, data, _ in sent if isinstance(data, dict) and len(data) == 1]


def asked(model, rounds=2):
    s = session(model, rounds)
    return s, an._asked(s, "The model follows.", "Which one?")


def test_buttons_drive_rounds_and_a_static_twin_tells_them(sent):
    model = Model()
    s, panel = asked(model)
    line, images, button = panel.line, panel.pair.children, panel.buttons
    assert "round 1 of 2, pair 1 of 3, asked for: a red cat. Which one?" in line.value
    assert button["undo"].disabled and images[0].value != images[1].value
    button["left"].click()
    assert s.now.answers == [1.0] and "pair 2 of 3" in line.value and not button["undo"].disabled
    button["tie"].click()
    button["undo"].click()
    button["right"].click()
    assert s.now.answers == [1.0, 0.0] and len(figures(sent)) == 1
    assert texts(sent)[-1] == line.value
    button["right"].click()
    assert model.seen[0].tolist() == [1, -1, -1] and len(figures(sent)) == 2
    assert "round 2 of 2, pair 1 of 3" in line.value and not button["left"].disabled
    button[widgets.REST].click()
    assert s.done and len(figures(sent)) == 3 and all(b.disabled for b in button.values())
    assert line.value.startswith("done: 3 labels by you, 83%") and texts(sent)[-1] == line.value
    assert panel.pair.layout.display == "none"  # no icons of broken images
    kind, data, rest = figures(sent)[-1]
    assert kind == "update" and data["image/png"] != figures(sent)[0][1]["image/png"]
    assert rest["metadata"]["image/png"]["alt"] == data["text/plain"]


def test_keys_label(sent):
    s, panel = asked(Model())
    for keys, answers in (("l", [1.0]), ("rx", [1.0]), ("R", [1.0, 0.0]), ("u", [1.0])):
        panel.keys.value = keys  # the last key counts
        assert panel.keys.value == "" and s.now.answers == answers
    panel.keys.value = "u"
    panel.keys.value = "u"  # nothing is left to take back
    assert s.now.answers == [] and "pair 1 of 3" in panel.line.value


def test_labels_are_kept_in_the_run_folder(sent, tmp_path, monkeypatch):
    run = SimpleNamespace(folder=tmp_path)
    shell = SimpleNamespace(user_ns={"_rlgenkit_run": run})
    monkeypatch.setattr(widgets, "kernel", lambda: shell)
    first, panel = asked(Model())
    for name in ("left", "right", "tie", "right"):
        panel.buttons[name].click()
    again = Model()
    s, panel = asked(again)
    assert again.seen[0].tolist() == [1, -1, 0] and s.clicks == 3 and s.now.answers == [0.0]
    assert "round 2 of 2, pair 2 of 3" in panel.line.value
    other = Model()
    other.level = 0.3
    assert asked(other)[0].now.answers == []


def test_pairs_without_rounds_have_the_same_buttons_and_tell_what_came_of_them(sent):
    pairs = torch.rand(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    came = []
    labels = wb.label_pairs(*pairs, lambda a, b: torch.ones(3), came.append)
    assert texts(sent)[-1] == "pair 1 of 3: which one is better?"
    box = next(d for _, d, _ in sent if hasattr(d, "children"))
    left, right, tie, undo, rest = box.children[2].children
    for button in (left, tie, undo, right):
        button.click()
    assert labels.clicked == {0: 1.0, 1: 0.0} and came == []
    rest.click()
    assert texts(sent)[-1].startswith("done: 2 of 3 labeled by you, 50% of them as by the simul")
    assert labels.values().tolist() == [1, 0, 1] and came == [labels]


def test_an_error_in_training_is_told_and_stops_the_panel(sent):
    model = Model()
    model.train = lambda labels: (_ for _ in ()).throw(FloatingPointError("loss is nan"))
    s, panel = asked(model)
    panel.buttons[widgets.REST].click()  # ipywidgets logs what a callback raises
    assert panel.line.value == "stopped: FloatingPointError: loss is nan"
    assert len(figures(sent)) == 1 and not s.labels
    assert all(b.disabled for b in panel.buttons.values())


def test_nobody_there_the_simulated_annotator_labels(capsys):
    model = Model()
    s = an.annotate(model.draw, brighter, model.train, model.look, ["a", "b"], "Follow.", rounds=3)
    assert s.done and s.clicks == 0 and s.agreement() == 1 and len(model.seen) == 3
    assert model.look().mean() > 0.9
    text = capsys.readouterr().out
    assert "9 pairs labeled by the simulated annotator" in text and "Follow." in text


CELL = """\
import torch
from rlgenkit.workbook.annotate import annotate
level = [0.5]
def draw():
    return torch.full((2, 3, 4, 4), level[0] + 0.1), torch.full((2, 3, 4, 4), level[0]), ["x", "y"]
def train(labels):
    level[0] += 0.1 * float(labels.mean())
s = annotate(draw, lambda a, b: (a - b).mean((1, 2, 3)).sign(), train,
             lambda: torch.full((1, 3, 4, 4), level[0]), ["x"], "The model follows.", rounds=2)
"""


def test_a_headless_notebook_keeps_a_figure_and_no_widget(tmp_path):
    import papermill

    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(CELL)],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    nbformat.write(book, tmp_path / "nb.ipynb")
    done = papermill.execute_notebook(
        str(tmp_path / "nb.ipynb"), None, progress_bar=False, cwd=os.getcwd()
    )
    outputs = done.cells[0].outputs
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1 and "2 rounds" in pictures[0].metadata["image/png"]["alt"]
    assert "widget-view" not in json.dumps(outputs) and "widgets" not in done.metadata
