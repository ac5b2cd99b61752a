"""Workbook: parameters, resume, statistics, verdicts, figures, exercises - each with an oracle."""

import json
import os

import nbformat
import numpy as np
import pytest
import torch

from rlgenkit import workbook as wb
from rlgenkit.workbook.parameters import read_table

CELL = """\
profile: str = "default"  # quick, default or full
seed: int = 0  # first seed
n_seeds: int = None  # number of seeds
device: str = "cpu"  # auto, cpu or cuda
out_dir: str = None  # run folder
steps: int = None  # updates
clip: float = 0.2  # clip range
reward: str = "truth"  # which reward
"""
PRESETS = {"quick": {"steps": 2}, "default": {"steps": 10}, "full": {"steps": 99}}
RANGES = {"clip": (1e-6, 1.0), "reward": ["truth", "warmth"], "steps": (1, None)}


def namespace(**changes):
    space = {}
    exec(CELL, space)
    return {**space, **changes}


def resolved(**changes):
    return wb.parameters(namespace(**changes), "98_trial", PRESETS, RANGES)


def started(folder, profile="default"):
    return wb.start(
        resolved(out_dir=str(folder), profile=profile),
        "DDPO",
        {"title": "T", "year": 2023, "arxiv": "2305.13301"},
    )


# --- parameters


def test_presets_fill_none_and_given_values_win():
    p = resolved()
    assert (p.steps, p.clip, p.n_seeds, p.seeds, p.device) == (10, 0.2, 3, [0, 1, 2], "cpu")
    assert resolved(steps=7, profile="full").steps == 7
    assert resolved(profile="quick", seed=5).seeds == [5]
    assert resolved(clip=1).clip == 1.0 and type(resolved(clip=1).clip) is float
    with pytest.raises(AttributeError, match="did you mean `steps`"):
        p.step
    with pytest.raises(AttributeError):
        p.steps = 3


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"setps": 3},
            "unknown parameter `setps` (did you mean `steps`?); this notebook has profile",
        ),
        ({"steps": "ten"}, "`steps` must be an int, but it is 'ten' (str)"),
        ({"steps": True}, "`steps` must be an int, but it is True (bool)"),
        ({"steps": 3.0}, "`steps` must be an int, but it is 3.0 (float)"),
        ({"steps": 0}, "`steps` must be at least 1, but it is 0"),
        ({"clip": 2.0}, "`clip` must be between 1e-06 and 1.0, but it is 2.0"),
        ({"clip": float("nan")}, "`clip` must be a finite number, but it is nan"),
        (
            {"reward": "thruth"},
            "`reward` must be truth or warmth, but it is 'thruth' (did you mean",
        ),
        (
            {"profile": "quik"},
            "unknown profile `quik` (did you mean `quick`?); choose quick, default",
        ),
        ({"device": "cuda:99"}, "device `cuda:99` is not there; use device='auto' or device='cpu'"),
        ({"device": "gpu"}, "unknown device `gpu`"),
        ({"n_seeds": 0}, "`n_seeds` must be between 1 and 1000, but it is 0"),
        ({"seed": -1}, "`seed` must be between 0 and 2147483647, but it is -1"),
        ({"reward": None}, "`reward` is None and profile `default` has no preset for it"),
    ],
)
def test_parameter_errors_are_one_sentence(changes, sentence):
    with pytest.raises(wb.ParameterError) as error:
        resolved(**changes)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_parameters_in_a_kernel_come_from_the_cells():
    space = namespace(setps=3, steps=4)  # stale variables of a live session do no harm
    space["In"] = ["", "%time", CELL, "# Parameters\nsteps = 4\n", "p = 1"]
    assert wb.parameters(space, "98_trial", PRESETS, RANGES).steps == 4
    space["In"].insert(4, "# Parameters\nsetps = 3\n")
    with pytest.raises(wb.ParameterError, match="did you mean `steps`"):
        wb.parameters(space, "98_trial", PRESETS, RANGES)


def test_presets_of_profiles_must_agree():
    with pytest.raises(wb.ParameterError, match="presets differ in n_eval"):
        wb.parameters(namespace(), "98_trial", {"quick": {"n_eval": 1}, "default": {}})
    with pytest.raises(wb.ParameterError, match="`steps` must be at least 1"):
        wb.parameters(
            namespace(),
            "98_trial",
            {"default": {"steps": 5}, "full": {"steps": 0}},
            {"steps": (1, None)},
        )


TABLE = """
            quick  default  full   range
steps       2      10       99     1..          # updates
clip        0.2    1        0.2    1e-6..1
reward      truth  truth    truth  truth | warmth
model       7      a/b      a b    folder or hub id
n_eval      4      8        [1, 2]
"""
TYPES = {"steps": "int", "clip": "float", "reward": "str", "model": "str"}


def test_a_table_gives_presets_and_ranges():
    presets, ranges = read_table(TABLE, TYPES)
    assert presets == {
        "quick": {"steps": 2, "clip": 0.2, "reward": "truth", "model": "7", "n_eval": 4},
        "default": {"steps": 10, "clip": 1.0, "reward": "truth", "model": "a/b", "n_eval": 8},
        "full": {"steps": 99, "clip": 0.2, "reward": "truth", "model": "a b", "n_eval": [1, 2]},
    }
    assert type(presets["default"]["clip"]) is float
    assert ranges == {
        "steps": (1, None),
        "clip": (1e-6, 1),
        "reward": ["truth", "warmth"],
        "model": "folder or hub id",
    }
    p = wb.parameters(namespace(profile="quick", clip=None), "98_trial", table=TABLE)
    assert (p.steps, p.clip, p.n_eval, p.model, p.seeds) == (2, 0.2, 4, 7, [0])
    for changes, sentence in (
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"reward": "thruth"}, "`reward` must be truth or warmth"),
        ({"clip": 2.0}, "`clip` must be between 1e-06 and 1, but it is 2.0"),
    ):
        with pytest.raises(wb.ParameterError, match=sentence):
            wb.parameters(namespace(**changes), "98_trial", table=TABLE)


@pytest.mark.parametrize(
    "table, sentence",
    [
        ("quick  full\nsteps  1 2", "row `steps` of the table has 1 cells for 2 profiles"),
        (
            "quick  full\nsteps  1  2  3",
            "has 3 cells for 2 profiles: keep columns apart by two spaces",
        ),
        ("quick  range  full\nsteps  1  2  3", "the table starts with a line of profiles"),
        ("quick  full\nsteps  1  2\nsteps  1  2", "the table has two rows `steps`"),
        (
            "quick  full\nclip  1  1\nreward  a  a\nsteps  1  many",
            "`steps` must be an int, but it is 'many' (str)",
        ),
        (
            "quick  full  range\nclip  1  1\nreward  a  a\nsteps  1  9  1..5",
            "`steps` must be between 1 and 5, but it is 9",
        ),
        ("", "needs the presets of each profile, best as a table"),
    ],
)
def test_faults_of_a_table_are_one_sentence(table, sentence):
    with pytest.raises(wb.ParameterError) as error:
        wb.parameters(namespace(profile="quick"), "98_trial", table=table)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def written(path, parameters, call):
    cells = [nbformat.v4.new_code_cell(text) for text in ("%time", parameters, call)]
    cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_declared_reads_the_table_and_types_by_their_syntax(tmp_path):
    text = CELL.replace('"truth"', '"a=b # 3"')
    call = f'p = wb.parameters(globals(), notebook="98_trial", table="""{TABLE}""")'
    found = wb.declared(written(tmp_path / "nb.ipynb", text, call))
    assert (found.presets, found.ranges) == read_table(TABLE, found.types)
    assert found.defaults["reward"] == "a=b # 3" and found.help["reward"] == "which reward"
    assert wb.check_overrides(found, {"profile": "quick", "reward": "warmth"})["steps"] == 2
    with pytest.raises(wb.ParameterError, match="`steps` must be at least 1"):
        wb.check_overrides(found, {"steps": 0, "reward": "warmth"})
    with pytest.raises(
        wb.ParameterError, match="`steps` must be a literal in the parameters cell, not 2"
    ):
        wb.declared(
            written(
                tmp_path / "b.ipynb", CELL.replace("steps: int = None", "steps: int = 2 * 3"), call
            )
        )
    with pytest.raises(wb.ParameterError, match="has no cell tagged `parameters`"):
        wb.declared(written(tmp_path / "c.ipynb", "", call))


def test_mistyped_names_of_the_parameters_cell_are_told():
    """Also those that would change nothing without a word."""
    typo = CELL.replace("clip:", "clipp:")
    space, kinds = {}, "the parameters cell names `clipp`"
    exec(typo, space)
    with pytest.raises(
        wb.ParameterError, match=kinds + ", which has no row .* .did you mean `clip`"
    ):
        wb.parameters(space, "98_trial", table="default  range\nsteps  1\nclip  0.1\nreward  truth")
    with pytest.raises(wb.ParameterError, match=kinds + "; write `clip`"):
        wb.parameters(space, "98_trial", {"default": {"steps": 1}}, {"clip": (0, 1)})
    live = namespace(steps=5)
    live["In"] = ["", CELL.replace("steps: int = None", "steps = 5")]
    with pytest.raises(
        wb.ParameterError, match="sets `steps` without its type, which would be ignored"
    ):
        wb.parameters(live, "98_trial", PRESETS)


def test_a_parameter_error_shows_its_sentence_alone_in_a_notebook():
    assert wb.ParameterError("no steps")._render_traceback_() == ["ParameterError: no steps"]


@pytest.fixture
def notebook(tmp_path):
    call = (
        "from rlgenkit import workbook as wb\n"
        f"p = wb.parameters(globals(), notebook='98_trial', presets={PRESETS}, ranges={RANGES})"
    )
    rest = [
        "run = wb.start(p)\nwb.show(wb.lines({'a': [0, 1, 4]}, 'step', 'reward'), caption='Rise.')",
        "wb.explore(lambda k: wb.lines({'a': [0, k]}, 'x', 'y'), 'Slope', k=[2, 3])\n"
        "labels = wb.label_pairs(*[__import__('torch').zeros(2, 3, 4, 4)] * 2,"
        " lambda a, b: a.mean((1, 2, 3)))\n"
        "guess = wb.predict('Up or down?', ['up', 'down'], 0, 'It climbs.')",
        "for step in run.steps(2, 'a'):\n    run.log(step, reward=step)\nrun.finish()",
        "import sys\nprint('heavy:', {'diffusers', 'transformers'} & set(sys.modules))",
    ]
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(s) for s in [CELL, call, *rest]],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, tmp_path / "nb.ipynb")
    return tmp_path / "nb.ipynb"


def test_declared_checks_before_any_work(notebook):
    found = wb.declared(notebook)
    assert found.types["clip"] == "float" and found.defaults["steps"] is None
    assert found.help["reward"] == "which reward" and found.presets == PRESETS
    assert wb.check_overrides(found, {"profile": "quick"})["steps"] == 2
    for wrong in ({"setps": 3}, {"clip": 2.0}, {"steps": "ten"}, {"device": "cuda:99"}):
        with pytest.raises(wb.ParameterError) as early:
            wb.check_overrides(found, wrong)
        with pytest.raises(wb.ParameterError) as late:
            resolved(**wrong)
        assert str(early.value) == str(late.value)


def test_headless_notebook_has_alt_text_and_no_widgets(notebook, tmp_path):
    import papermill

    done = papermill.execute_notebook(
        str(notebook), None, {"out_dir": str(tmp_path / "run")}, progress_bar=False, cwd=os.getcwd()
    )
    outputs = [o for cell in done.cells for o in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2 and "widgets" not in done.metadata
    assert pictures[0].metadata["image/png"]["alt"] == pictures[0].data["text/plain"]
    assert "rises from 0 to 4" in pictures[0].data["text/plain"]
    text = json.dumps(outputs)
    assert "*Figure 98.1: Rise.*" in text and "widget-view" not in text and "stderr" not in text
    assert "heavy: set()" in text  # the workbook does not load what a notebook does not need
    assert "a: 2 steps; reward 0 to 1" in text and "<details>" in text
    assert (tmp_path / "run" / "figures" / "figure_98_2.png").exists()
    wb.validate(json.loads((tmp_path / "run" / "results.json").read_text()))


# --- figures


def test_show_needs_alt_and_caption():
    figure, _ = wb.new_figure()
    with pytest.raises(ValueError, match="alt text"):
        wb.show(figure, " ", "A caption")
    with pytest.raises(ValueError, match="caption"):
        wb.show(figure, "An alt text")


def test_equal_data_give_equal_bytes_and_no_settings_leak():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draws = [wb.png(wb.bars({"a": [1.0, 2.0, 3.0]}, "reward").figure) for _ in range(2)]
    assert draws[0] == draws[1] and b"Software" not in draws[0] and len(draws[0]) < 20_000
    assert dict(matplotlib.rcParams) == before


def test_two_seeds_are_drawn_as_they_are_and_five_get_an_interval():
    two, five = [0.0, 1.0], [0.0, 1.0, 0.5, 0.5, 0.5]
    for count, values in ((0, two), (1, five)):
        picture = wb.bars({"a": values}, "y")
        assert len(picture.figure.axes[0].containers) == 1 + count  # the bar, its interval
    assert "a 0.5 (values 0 to 1, n=2)" in wb.bars({"a": two}, "y").alt
    assert "a 0.5 (95 % interval 0.061 to 0.939, n=5)" in wb.bars({"a": five}, "y").alt
    bands = [wb.lines({"a": np.ones((n, 3))}, "x", "y").figure.axes[0] for n in (2, 5)]
    assert [(len(ax.lines), len(ax.collections)) for ax in bands] == [(3, 0), (1, 1)]


def test_bars_show_few_values_as_dots_and_many_only_in_words():
    few, many = np.linspace(0, 1, 20), np.linspace(0, 1, 21)
    picture = wb.bars({"few": few, "many": many}, "accuracy")
    dots = [line for line in picture.figure.axes[0].lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [20]
    assert "n=20" in picture.alt and "n=21" in picture.alt


def test_alt_text_tells_the_data():
    rise, peak = np.linspace(0.1, 0.9, 9), np.array([0.0, 1, 2, 1, 0.5])
    curves = {m: {"reward": np.stack([rise, rise + 0.1])} for m in ("DDPO", "RWR")}
    alt = wb.three_curves(curves, ["reward"], ["proxy"]).alt
    assert "DDPO rises from 0.15 to 0.95 (single seeds 0.9 to 1)" in alt and "2 seeds" in alt
    five = {"a": {"reward": np.stack([rise, rise + 0.1, rise, rise, rise + 0.1])}}
    alt = wb.three_curves(five, ["reward"], ["proxy"]).alt
    assert "a rises from 0.14 to 0.94 (interval 0.872 to 1.01)" in alt
    alt = wb.lines({"a": peak}, "x", "y").alt
    assert "rises from 0 to a peak of 2 at 2, then falls to 0.5" in alt
    assert "stays near 1" in wb.lines({"a": np.ones(4)}, "x", "y").alt
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alt = wb.before_after(images, images, torch.tensor([0.1, 0.5, -0.2, 0.0]), list("abcd")).alt
    assert "best +0.50 (b)" in alt and "worst -0.20 (c)" in alt and "2 gained" in alt
    assert "2 x cat; dog" in wb.image_grid(images[:3], ["cat", "cat", "dog"]).alt
    assert "steps, 0 to 9" in wb.strip(images.reshape(2, 2, 3, 8, 8), ["a", "b"], [0, 9]).alt
    assert "largest 2 at a, 2" in wb.advantage_map([[1.0, 2.0], [-1.0, 0.0]], ["a", "b"]).alt
    assert "50% positive" in wb.advantage_map([[1.0, 2.0], [-1.0, 0.0]], ["a", "b"]).alt
    points = {"a": ([0, 1], [1, 2])}
    assert "a: 2 points, rank correlation undefined" in wb.scatter(points, "x", "y").alt
    assert "step 5 mean 1" in wb.ridge([[0.0, 1.0], [1.0, 1.0]], [0, 5]).alt


def drawn(picture):
    """The figure after it was drawn as `show` draws it, so that its layout is final."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(picture.figure).draw()
    return picture.figure


@pytest.mark.parametrize(
    "low, high",
    [(32, 240), (2, 16), (0.07, 0.65), (1.1, 1.4), (2, 4.9), (3e-4, 0.08), (1, 1e4), (1e-2, 1e14)],
)
@pytest.mark.parametrize("log", ["x", "y"])
def test_labels_of_a_log_axis_never_collide(log, low, high):
    values = np.geomspace(low, high, 9)
    series, x = ({"a": values}, None) if log == "y" else ({"a": np.arange(9)}, values)
    axis = getattr(drawn(wb.lines(series, "x", "y", x=x, log=log)).axes[0], f"{log}axis")
    ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
    first, last = axis.get_view_interval()
    shown = [t for v, t in ticks if first <= v <= last and t.get_text()]
    assert len(shown) >= 2 and not any(t.get_text() for t in axis.get_ticklabels(minor=True))
    spans = [t.get_window_extent() for t in shown]
    for k, one in enumerate(spans):
        assert not any(one.overlaps(other) for other in spans[k + 1 :]), [
            t.get_text() for t in shown
        ]
    if high < 100 * low:
        assert all(float(t.get_text()) for t in shown)  # plain numbers, no powers of ten


def test_alt_text_says_what_a_mean_is_over():
    y = np.ones((3, 2))
    assert wb.lines({"a": y}, "x", "y").alt.endswith("(mean of 3 seeds).")
    assert wb.lines({"a": y}, "x", "y", over="pairs").alt.endswith("(mean of 3 pairs).")
    curves = {"a": {"reward": y, "truth": y, "diversity": y}}
    assert wb.three_curves(curves, over="prompts").alt.count("(mean of 3 prompts).") == 3


def test_steps_have_whole_numbers():
    figure = drawn(wb.lines({"a": np.arange(5.0)}, "round", "y", x=[1, 2, 3, 4, 5]))
    assert {float(t.get_text()) % 1 for t in figure.axes[0].get_xticklabels()} == {0.0}


def test_numbers_in_a_matrix_are_plain_and_zero_has_no_sign():
    from rlgenkit.workbook import plots

    def written(values, **named):
        figure = plots.heat_map(np.array(values), ["a", "b"], ["c", "d"], **named).figure
        return [t.get_text() for t in figure.axes[0].texts]

    assert written([[100.0, 99.7], [0.067, 1234.0]]) == ["100", "100", "0.067", "1234"]
    assert written([[-0.04, 0.0], [1.25, -100.0]], signed=True) == ["0.0", "0.0", "+1.2", "-100.0"]


def test_many_labels_stand_off_the_data_and_pictures_keep_their_size():
    names = [f"method number {k}" for k in range(6)]
    mixed = [
        "preference",
        "similarity",
        "ensemble",
        "ensemble + guard",
        "ensemble + half guard",
        "guard alone",
    ]
    for picture in (
        wb.lines({n: np.ones(5) for n in names}, "x", "y"),
        wb.frontier({n: ([0, 1], [0, 1]) for n in mixed}, "x", "y"),
        wb.scatter({n: ([0.0, 1, 2], [0.0, 1, 2]) for n in names}, "x", "y"),
        wb.three_curves({n: {"r": np.ones((2, 5))} for n in names}, ["r"], ["proxy"]),
    ):
        figure = drawn(picture)
        (legend,) = figure.legends
        frame, area = legend.get_window_extent(), figure.axes[0].get_window_extent()
        assert not frame.overlaps(area) and figure.axes[0].get_legend() is None
        assert frame.x0 >= 0 and frame.x1 <= figure.bbox.x1
    images, long = torch.rand(2, 3, 8, 8), "a blue cloud below a purple star on a sand background"
    widths = []
    for labels in (["a", "b"], [long, "b"]):
        figure = drawn(wb.image_grid(images, labels, 2))
        widths.append(figure.axes[0].get_window_extent().width)
        assert figure.axes[0].title.get_window_extent().y1 <= figure.bbox.y1  # no line cut off
    assert widths[1] > 0.95 * widths[0]


def test_no_bar_is_black_since_dots_and_intervals_are():
    figure = drawn(wb.bars({f"m{k}": [0.9, 1.0, 1.1] for k in range(9)}, "y"))
    assert len(figure.axes[0].patches) == 9
    assert all(bar.get_facecolor()[:3] != (0, 0, 0) for bar in figure.axes[0].patches)


def test_frontier_numbers():
    alt = wb.frontier({"a": ([0, 1], [0.0, 2.0]), "b": ([0.5, 2], [1.0, 1.5])}, "KL", "reward").alt
    assert "KL 0 to 1, reward 0 to 2, 2 on the front" in alt  # b's second point is beaten by a's
    assert "KL 0.5 to 2, reward 1 to 1.5, 1 on the front" in alt


# --- exercises and widgets


def advantage(r):
    return (r - r.mean()) / r.std()


@pytest.fixture(scope="module")
def exercise():
    return wb.Check(
        reference=lambda r, v: (advantage(r).detach() * v).mean(),
        inputs=lambda g: [
            torch.randn(6, generator=g, requires_grad=True),
            torch.randn(6, generator=g, requires_grad=True),
        ],
        wrong={
            "the sign is turned": lambda r, v: -(advantage(r).detach() * v).mean(),
            "detach the advantage": lambda r, v: (advantage(r) * v).mean(),
            "mean, not sum": lambda r, v: (advantage(r).detach() * v).sum(),
        },
    )


def test_exercise_hints(exercise, capsys):
    assert exercise.outcome(lambda r, v: exercise.reference(r, v)).status == "pass"
    assert "reference itself" in exercise.outcome(exercise.reference).message
    for hint, function in exercise.wrong.items():
        assert exercise.outcome(function) == wb.Outcome("wrong", f"not quite: {hint}")

    def stub(r, v):
        raise NotImplementedError

    assert exercise.outcome(stub).status == exercise.outcome(lambda r, v: None).status == "not yet"
    assert "raised TypeError" in exercise.outcome(lambda r: r).message
    said = exercise.outcome(lambda r, v: v).message
    assert (
        said
        == "not quite: it returns 6 numbers in a row, expected a single number: a mean or a sum "
        "is missing at the end"
    )
    assert "it is 0, expected" in exercise.outcome(lambda r, v: torch.zeros(())).message
    wb.check("01.2", stub, exercise)
    assert capsys.readouterr().out.startswith("Exercise 01.2: not yet")


def test_a_mistake_the_inputs_cannot_see_is_refused():
    with pytest.raises(ValueError, match="do not tell the mistake 'mean'"):
        wb.Check(
            lambda x: x.sum(), lambda g: [torch.randn(1, generator=g)], {"mean": lambda x: x.mean()}
        )


def test_labels_fall_back_to_the_annotator():
    labels = wb.label_pairs(
        torch.ones(3, 3, 4, 4),
        torch.zeros(3, 3, 4, 4),
        lambda a, b: (a.mean((1, 2, 3)) > b.mean((1, 2, 3))).float(),
    )
    assert labels.values().tolist() == [1, 1, 1] and np.isnan(labels.agreement())
    labels.clicked.update({0: 1.0, 2: 0.0})
    assert labels.values().tolist() == [1, 1, 0] and labels.agreement() == 0.5


def test_matrix_labels_may_be_numbers_and_rounding_errors_read_as_zero():
    from rlgenkit.workbook import plots

    picture = plots.heat_map(np.array([[1.0, 2.0], [3.0, 4.0]]), ["a", "b"], [999, 832], "time t")
    assert "2 rows and 2 columns (time t)" in picture.alt and "at b, 832" in picture.alt
    curve = plots.lines({"truth": np.array([-2.2e-8, 0.5, 1.0])}, "KL", "score")
    assert "truth rises from 0 to 1" in curve.alt
