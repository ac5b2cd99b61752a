"""The annotator: rounds of clicks by code, the simulated stand-in, a figure without widget state."""

import json
import os

import nbformat
import pytest
import torch

from rlgenkit import workbook as wb
from rlgenkit.workbook import annotate as an


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
    for label in (1.0, 0.0, -1.0):
        assert not s.complete
        s.answer(label)
    assert s.complete and not s.done and model.seen == []
    s.learn()
    assert model.seen[0].tolist() == [1, 0, -1] and model.draws == 2 and not s.complete
    assert [p.mean().item() for p in s.pictures] == pytest.approx([0.5, 0.55])
    s.answer(-1.0)
    s.undo()
    s.answer(0.0)
    s.leave()  # the annotator answers pairs 1 and 2, not 0 and 1
    s.learn()
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
    with pytest.raises(ValueError, match="1 .left., -1"):
        s.answer(0.5)
    s.leave()
    with pytest.raises(ValueError, match="every pair"):
        s.answer(1.0)
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


def panel(model, rounds=2):
    s, shown = session(model, rounds), []
    box = an._panel(s, "Which one?", shown.append)
    line, images, buttons = box.children
    return s, shown, line, images.children, {b.description: b for b in buttons.children}


def test_buttons_drive_rounds():
    model = Model()
    s, shown, line, images, button = panel(model)
    assert "round 1 of 2, pair 1 of 3, asked for: a red cat. Which one?" in line.value
    assert button["undo"].disabled and images[0].value != images[1].value
    button["left"].click()
    assert s.answers == [1.0] and "pair 2 of 3" in line.value and not button["undo"].disabled
    button["tie"].click()
    button["undo"].click()
    button["right"].click()
    assert s.answers == [1.0, -1.0] and shown == []
    button["right"].click()
    assert model.seen[0].tolist() == [1, -1, -1] and len(shown) == 1
    assert "round 2 of 2, pair 1 of 3" in line.value and not button["left"].disabled
    button["leave the rest to the annotator"].click()
    assert s.done and len(shown) == 2 and all(b.disabled for b in button.values())
    assert line.value.startswith("done: 3 labels by you, 83%") and images[0].value == b""
    assert isinstance(shown[-1], wb.Picture)


def test_an_error_in_training_is_told_and_stops_the_panel():
    model = Model()
    model.train = lambda labels: (_ for _ in ()).throw(FloatingPointError("loss is nan"))
    s, shown, line, images, button = panel(model)
    button["leave the rest to the annotator"].click()  # ipywidgets logs what a callback raises
    assert line.value == "stopped: FloatingPointError: loss is nan" and shown == []
    assert all(b.disabled for b in button.values()) and not s.labels


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


def test_with_a_person_the_figure_is_an_output_that_follows(monkeypatch):
    """The figure's display is updated after each round; it is no widget, so a saved file keeps it."""
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
    model = Model()
    s = an.annotate(model.draw, brighter, model.train, model.look, ["a", "b"], "Follow.", rounds=1)
    kinds = [
        (kind, "image/png" in data if isinstance(data, dict) else "box") for kind, data, _ in sent
    ]
    assert kinds == [("display", True), ("display", "box")] and not s.done
    buttons = {b.description: b for b in sent[1][1].children[2].children}
    for _ in range(3):
        buttons["left"].click()
    assert (
        s.done and sent[-1][0] == "update" and sent[-1][1]["image/png"] != sent[0][1]["image/png"]
    )
    assert sent[-1][2]["metadata"]["image/png"]["alt"] == sent[-1][1]["text/plain"]
