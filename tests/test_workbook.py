"""Workbook: parameters, resume, statistics, verdicts, figures, exercises - each with an oracle."""

import json
import os
import sys

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
    return wb.parameters(in_a_kernel(**changes), "98_trial", PRESETS, RANGES)


def in_a_kernel(**changes):
    """The namespace of a kernel in which papermill changed some parameters."""
    injected = "".join(f"{name} = {value!r}\n" for name, value in changes.items())
    return namespace(**changes) | {"In": ["", CELL, f"# Parameters\n{injected}"]}


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
    table = TABLE.replace("folder or hub id", "")  # what has a range is a parameter
    p = wb.parameters(namespace(profile="quick", clip=None), "98_trial", table=table)
    assert (p.steps, p.clip, p.n_eval, p.model, p.seeds) == (2, 0.2, 4, 7, [0])
    for changes, sentence in (
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"reward": "thruth"}, "`reward` must be truth or warmth"),
        ({"clip": 2.0}, "`clip` must be between 1e-06 and 1, but it is 2.0"),
    ):
        with pytest.raises(wb.ParameterError, match=sentence):
            wb.parameters(namespace(**changes), "98_trial", table=table)


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


def test_a_type_that_no_range_fits_is_told():
    space = namespace(profile="quick", steps="5")
    space["__annotations__"] = {**space["__annotations__"], "steps": str}
    with pytest.raises(wb.ParameterError, match="`steps` must be at least 1, but it is '2'"):
        wb.parameters(space, "98_trial", table=TABLE.replace("folder or hub id", ""))


def written(path, parameters, call):
    cells = [nbformat.v4.new_code_cell(text) for text in ("%time", parameters, call)]
    cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_declared_reads_the_table_and_types_by_their_syntax(tmp_path):
    text = CELL.replace('"truth"', '"a=b # 3"') + "model: str = None  # which one\n"
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


@pytest.mark.parametrize(
    "new, sentence",
    [
        ("steps = 5", "holds `steps = 5`, which would be ignored: write `steps: type = value`"),
        ("steps: int", "holds `steps: int`, which would be ignored"),
        ("steps += 1", "write `steps: type = value`"),
        ("print(3)", "holds `print.3.`, which would be ignored: write `name: type = value`"),
        ("if 1: steps = 5", "holds `if 1:`, which would be ignored"),
        ("steps: int = 2 * 3", "`steps` must be a literal in the parameters cell, not 2"),
        ("", "the parameters cell lacks `steps`, which has a range: add the line `steps: type"),
        ('steps: str = "5"', "`steps` must be a str, but it is 2 .int."),
        ("steps: int | None = 5", "`steps` is declared as int . None; use one of int, float"),
        ("steps: int =", "the parameters cell is no Python: invalid syntax"),
    ],
)
def test_an_edited_or_deleted_line_is_told_in_the_notebook_and_on_the_command_line(
    tmp_path, new, sentence
):
    cell = CELL.replace("steps: int = None  # updates", new)
    live = namespace(steps="5" if "str" in new else 5)
    live["In"] = ["", cell, "p = wb.parameters(globals())"]
    call = f"p = wb.parameters(globals(), presets={PRESETS}, ranges={RANGES})"
    if new != "steps: int =":  # Python itself would not have run that cell
        with pytest.raises(wb.ParameterError, match=sentence):
            wb.parameters(live, "98_trial", PRESETS, RANGES)
    with pytest.raises(wb.ParameterError, match=sentence):
        wb.check_overrides(wb.declared(written(tmp_path / "nb.ipynb", cell, call)), {})


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
    assert "2 of cat; dog" in wb.image_grid(images[:3], ["cat", "cat", "dog"]).alt
    assert "steps, 0 to 9" in wb.strip(images.reshape(2, 2, 3, 8, 8), ["a", "b"], [0, 9]).alt
    album = wb.strip(images.reshape(2, 2, 3, 8, 8), ["a", "b"], ["cat", "dog"], "Album").alt
    assert album == "Album: rows a; b; columns cat; dog."
    points = {"a": ([0, 1], [1, 2])}
    assert "a: 2 points, rank correlation undefined" in wb.scatter(points, "x", "y").alt
    assert "step 5 mean 1" in wb.ridge([[0.0, 1.0], [1.0, 1.0]], [0, 5]).alt


def test_seeds_that_stop_early_are_drawn_as_far_as_all_go():
    y = np.array([[1.0, 2.0, 3.0], [1.0, 4.0, np.nan]])
    assert "a rises from 1 to 3 (single seeds 2 to 4)" in wb.lines({"a": y}, "x", "y").alt
    alt = wb.lines({"a": [[1.0, 2.0], [np.nan] * 2], "b": [0, 1]}, "x", "y").alt
    assert "a has no seeds of one length; b rises from 0 to 1" in alt


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
    labels.answers += [1.0, None, 0.0]
    assert labels.values().tolist() == [1, 1, 0] and labels.agreement() == 0.5


def test_matrix_labels_may_be_numbers_and_rounding_errors_read_as_zero():
    from rlgenkit.workbook import plots

    picture = plots.heat_map(np.array([[1.0, 2.0], [3.0, 4.0]]), ["a", "b"], [999, 832], "time t")
    assert "2 rows and 2 columns (time t)" in picture.alt and "at b, 832" in picture.alt
    curve = plots.lines({"truth": np.array([-2.2e-8, 0.5, 1.0])}, "KL", "score")
    assert "truth rises from 0 to 1" in curve.alt


def live_explore(monkeypatch, **sliders):
    """(the values that fn was called with, controls by name) of explore where a person is."""
    import ipywidgets

    from rlgenkit.workbook import widgets

    calls, boxes = [], []

    def draw(**values):
        calls.append(values)
        return wb.lines({"a": [0, 1]}, "x", "y")

    monkeypatch.setattr(widgets, "headless", lambda: False)
    monkeypatch.setattr("IPython.display.display", lambda thing, **_: boxes.append(thing))
    wb.explore(draw, "Slope", **sliders)
    (box,) = [b for b in boxes if isinstance(b, ipywidgets.VBox)]
    rows = [row.children for row in box.children[:-1]]
    return calls, {menu.description: (menu, slider) for menu, slider in rows}


def test_sliders_are_in_order_named_and_take_pairs_and_none(monkeypatch, capsys):
    calls, controls = live_explore(
        monkeypatch, a=[0.8, 0.0, 0.2], b=[("64 px", 32), ("16 px", 8)], c=[None, "x"], d=[[1], [0]]
    )
    assert calls[0] == {"a": 0.8, "b": 32, "c": None, "d": [1]}
    assert "(a = 0.8, b = 64 px, c = None, d = [1])" in capsys.readouterr().out
    names = {name: [label for label, _ in menu.options] for name, (menu, _) in controls.items()}
    assert names == {
        "a": ["0.0", "0.2", "0.8"],
        "b": ["16 px", "64 px"],
        "c": ["None", "x"],
        "d": ["[1]", "[0]"],
    }
    menu, slider = controls["a"]
    assert menu.label == slider.label == "0.8"  # the first value is the default
    slider.value = 0
    assert menu.label == "0.0" and calls[-1] == {**calls[0], "a": 0.0}
    controls["b"][0].value = 0
    controls["c"][1].value = 1
    assert calls[-1] == {"a": 0.0, "b": 8, "c": "x", "d": [1]}


# --- what data say is text


HOSTILE = '<script>alert(1)</script> <img src=x onerror="alert(2)"> <!-- | \n</td> [x](javascript:alert(3)) ![y](http://z.z/p.png)'


@pytest.fixture
def html(monkeypatch):
    """A function that runs shows a notebook's outputs as HTML with the shell of a live kernel."""
    from types import SimpleNamespace

    from nbconvert import HTMLExporter

    modules = [sys.modules[f"rlgenkit.workbook.{name}"] for name in ("show", "exercises")]

    def page(*calls):
        outputs = []

        def display(data, raw=True, metadata=None, **_):
            data |= {"image/png": ""} if "image/png" in data else {}
            outputs.append(nbformat.v4.new_output("display_data", data, metadata=metadata or {}))

        shell = SimpleNamespace(user_ns={})
        for module in modules:
            monkeypatch.setattr(module, "kernel", lambda: shell)
        monkeypatch.setattr("IPython.display.display", display)
        for call in calls:
            call()
        cell = nbformat.v4.new_code_cell("", outputs=outputs)
        book = nbformat.v4.new_notebook(cells=[cell])
        return [
            HTMLExporter(template_name=name).from_notebook_node(book)[0]
            for name in ("classic", "lab")
        ]

    return page


def test_hostile_texts_stay_texts(html):
    values = resolved(reward="truth").values | {"reward": HOSTILE, "model": f"a|{HOSTILE}"}
    p = wb.Parameters("98_trial", values)
    stub = wb.Check(torch.sum, lambda g: [torch.ones(2)], hints=[HOSTILE])
    pages = html(
        lambda: wb.table(("a", "b"), [(HOSTILE, 1.0), ("`<b>`", HOSTILE)], caption=HOSTILE),
        lambda: wb.markdown(f"**{HOSTILE}**"),
        lambda: wb.markdown(p._repr_markdown_()),
        lambda: wb.show(wb.lines({HOSTILE: [0, 1]}, HOSTILE, "y"), caption=HOSTILE),
        lambda: wb.predict(HOSTILE, [HOSTILE, "b"], 0, HOSTILE),
        lambda: wb.check("98.1", lambda x: None, stub),
    )
    for page in pages:
        body = page[page.index("<body") :]
        assert "alert(1)" in body and "<script>alert" not in body and "<img src=x" not in body
        assert 'href="java' not in body and '<img src="http' not in body and "z.z" in body
        assert body.count("<details>") == 2  # our own tags stay
    assert "| a\\|< script>" in p._repr_markdown_().replace("`model` ", "")


def test_texts_that_are_no_tags_stay_as_they_are():
    from rlgenkit.workbook.show import safe

    for text in ("$a < b$", "1 <2", "x <- y", "a > b", "`p<0.05`", "<", "no! [1]", "x[0](y)"):
        assert safe(text) == text
    for text in ("[01](01_ddpo.ipynb)", "[paper](https://arxiv.org/abs/1)", "[a](#b)", "f[i]: 3"):
        assert safe(text) == text
    for text in ("[x]( javaScript:1)", "[x](java&#115;cript:1)", "[x]: data:text/html,1"):
        assert safe(text) == text.replace("]", "] ")


def test_alt_text_reads_aloud(capsys):
    figure, _ = wb.new_figure()
    ends = {"queue": [0.7099999785423279, 0.07], "a": (5, np.float64(0.25))}
    wb.show(figure, f"Last policies {ends}; people's best {torch.tensor(3.0)}.", "Ends.")
    said = capsys.readouterr().out
    assert "Last policies queue: 0.71, 0.07, a: (5, 0.25); people's best 3.0." in said
    labels = ["base"] * 8 + ["sum"] * 2
    assert "to a row: 8 of base; 2 of sum." in wb.image_grid(torch.zeros(10, 3, 4, 4), labels).alt


# --- figures on any ground


def pixels(picture):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(wb.png(picture.figure))).convert("RGBA")).astype(int)


def test_figures_have_no_box_and_text_that_reads_on_light_and_dark():
    x = pixels(wb.lines({"a": np.ones(5)}, "step", "reward"))
    assert (x[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0).all()  # corners are transparent
    ink = x[(x[..., 3] == 255) & (x[..., :3].max(-1) < 250)]
    assert not (ink[:, :3].max(1) < 40).any()  # nothing black outside of the panel's colors
    middle = x[x.shape[0] // 2, x.shape[1] // 2]
    assert middle[3] == 255 and middle[:3].min() > 240  # the panel itself is white


def test_a_panel_without_a_frame_has_its_ground_too():
    figure, axes = wb.new_figure(1, 2)
    axes[0, 0].plot([0, 1], [0, 1], color="black")
    for ax in axes[0]:
        ax.set(xticks=[], yticks=[], frame_on=False)
    x = pixels(wb.Picture(figure, ""))
    half = x.shape[1] // 2
    assert (x[:, :half, 3] == 255).mean() > 0.5 and (x[:, half:, 3] == 0).all()


@pytest.mark.parametrize("ground", [0, 255])
def test_a_plot_of_few_colors_is_small_and_looks_the_same(monkeypatch, ground):
    def seen(x):
        return x[..., :3] * (x[..., 3:] / 255) + ground * (1 - x[..., 3:] / 255)

    curves = {
        name: np.random.default_rng(0).normal(size=(3, 30)).cumsum(1) + 3 * k
        for k, name in enumerate("abcd")
    }
    small = wb.lines(curves, "step", "reward")
    bytes_small, after = len(wb.png(small.figure)), seen(pixels(small))
    monkeypatch.setattr(sys.modules["rlgenkit.workbook.show"], "_with_palette", lambda x: x)
    before = seen(pixels(small))
    assert bytes_small < 0.7 * len(wb.png(small.figure))
    assert np.abs(after - before).mean() < 0.2 and np.abs(after - before).max() < 100


def test_pictures_keep_their_colors():
    """Forty different pictures in one figure: the palette of a plot would shift their colors."""
    draw = torch.Generator().manual_seed(0)
    colors = torch.rand(40, 3, 1, 1, generator=draw).expand(40, 3, 64, 64)
    x = pixels(wb.image_grid(colors, ["x"] * 40))
    seen = x[x[..., 3] == 255][:, :3]
    for color in (colors[:, :, 0, 0].numpy() * 255).round():
        assert (np.abs(seen - color).max(1) <= 2).sum() > 1000
