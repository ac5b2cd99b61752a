"""The ways of a parameter into a notebook: command line, papermill's -p, -y and -f, an edited cell.

What arrives in `p.name` is what was typed, or one sentence says why not; places are found and
looked into before any work.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from papermill import execute_notebook
from papermill.__main__ import papermill

from rlgenkit import workbook as wb
from rlgenkit.__main__ import parser
from rlgenkit.commands.inputs import checked_parameters, typed
from rlgenkit.commands.places import ROOT, InputError, find

KINDS = ("int", "float", "bool", "str", "list", "dict")
CELL = """\
profile: str = "quick"
seed: int = 0
n_seeds: int = None
device: str = "cpu"
out_dir: str = None
a_int: int = None
a_float: float = None
a_bool: bool = None
a_str: str = None  # any text
a_list: list = None
a_dict: dict = None
"""
CALL = '''\
from rlgenkit import workbook as wb
p = wb.parameters(globals(), notebook="98_trial", table="""
         quick   full
a_int    7       7
a_float  0.5     0.5
a_bool   True    True
a_str    preset  preset
a_list   []      []
a_dict   {}      {}
""")
'''
PRESET = {"int": 7, "float": 0.5, "bool": True, "str": "preset", "list": [], "dict": {}}


def write(path, cell=CELL, call=CALL):
    cells = [nbformat.v4.new_code_cell(text) for text in (cell, call)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return write(tmp_path_factory.mktemp("doors") / "98_trial.ipynb")


def in_a_kernel(path):
    """What `p` is after the cells of a notebook ran in order, as a kernel runs them."""
    space = {"In": [""]}
    for cell in nbformat.read(path, as_version=4).cells:
        space["In"].append(cell.source)
        exec(cell.source, space)
    return space["p"]


def through_papermill(book, *options):
    out = book.with_name("prepared.ipynb")
    done = CliRunner().invoke(
        papermill, [str(book), str(out), *options, "--prepare-only", "--no-progress-bar"]
    )
    assert done.exit_code == 0, done.output
    return in_a_kernel(out)


def command_line(book, name, text):
    """As `python -m rlgenkit run BOOK -p NAME TEXT` without the run."""
    args = parser().parse_args(["run", str(book), "-p", name, text])
    given = json.loads(json.dumps(checked_parameters(book, args.pairs)))  # as spec.json
    out = str(book.with_name("prepared.ipynb"))
    execute_notebook(str(book), out, given, prepare_only=True, progress_bar=False)
    return in_a_kernel(out)


def by_p(book, name, text):
    return through_papermill(book, "-p", name, text)


def by_y(book, name, value):
    return through_papermill(book, "-y", yaml.safe_dump({name: value}, sort_keys=False))


def by_f(book, name, value):
    file = book.with_name("given.yaml")
    file.write_text(
        yaml.safe_dump({name: value}, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    return through_papermill(book, "-f", str(file))


def by_cell(book, name, value):
    text = CELL.replace(f"{name}: {name[2:]} = None", f"{name}: {name[2:]} = {value!r}")
    return in_a_kernel(write(book.with_name("edited.ipynb"), text))


def arrived(door, book, kind, said):
    """The value behind a door, or the exception whose one sentence refuses it."""
    try:
        return getattr(door(book, f"a_{kind}", said), f"a_{kind}")
    except (wb.ParameterError, InputError) as error:
        assert f"a_{kind}" in str(error) and len(str(error).splitlines()) == 1
        return error


def equal(a, b):
    return repr(a) == repr(b)  # tells 1 from True and 1.0, and 0.0 from -0.0


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([-1e-4, 1e-300, 3e22, -0.0]))
TEXTS = st.one_of(
    st.text(),
    st.sampled_from(
        ["a=b", "cat # 3", "~/x", 'it\'s "so"', "a\nb", "\\n", "None", "True", "3", "-1e-4", "nan"]
        + ["'", '"', "--out", "{x}", "[1]", "é ☃ 𝄞", "null", "", " ", "a: b", "\r\n\t", "\x00"]
    ),
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
VALUES = st.one_of(
    NUMBERS, st.booleans(), st.none(), TEXTS, st.lists(PLAIN, max_size=3),
    st.dictionaries(TEXTS, PLAIN, max_size=3),
)  # fmt: skip
FEW = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def finite(value):
    if isinstance(value, float):
        return math.isfinite(value)
    rows = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(map(finite, rows))


def expected(kind, value):
    """What `value` is for a parameter of this kind; ... where it must be refused."""
    if value is None:
        return PRESET[kind]
    if kind == "float" and type(value) is int and abs(value) < 10**308:
        return float(value)
    return value if type(value).__name__ == kind and finite(value) else ...


def holds(door, book, kind, said, right):
    got = arrived(door, book, kind, said)
    if right is ...:
        assert isinstance(got, ValueError), f"{said!r} arrived as {got!r}"
    else:
        assert equal(got, right), f"{said!r} arrived as {got!r}, not {right!r}"


@pytest.mark.parametrize("door", [by_y, by_f, by_cell])
@FEW
@given(kind=st.sampled_from(KINDS), value=VALUES)
@example("float", 10**400)
@example("dict", {"a": [1, {"b": None}], "": "~"})
def test_values_arrive_or_are_refused(door, book, kind, value):
    holds(door, book, kind, value, expected(kind, value))


def written_out(kind, value):
    """How a person types the value on a command line."""
    return value if kind == "str" else repr(value)


@FEW
@given(kind=st.sampled_from(KINDS), value=VALUES)
@example("float", -1e-4)
@example("int", -3)
@example("str", "-x")
def test_texts_of_the_command_line_arrive_or_are_refused(book, kind, value):
    if kind == "str" and not isinstance(value, str):
        return  # any text is a text
    text, right = written_out(kind, value), expected(kind, value)
    if kind == "str":
        right = PRESET["str"] if text == "None" else text
    try:
        holds(command_line, book, kind, text, right)
    except SystemExit as stop:  # argparse takes it for an option, and says so in one sentence
        assert stop.code == 2 and re.match(r"-(?!\.?\d)", text)


def test_none_is_the_preset_and_quoted_a_text(book):
    for text, right in (("None", "preset"), ("'None'", "None"), ('"None"', "None"), ("'a'", "'a'")):
        assert command_line(book, "a_str", text).a_str == right
    assert command_line(book, "a_int", "None").a_int == 7


def test_a_run_folder_with_a_nul_is_refused(book):
    with pytest.raises(wb.ParameterError, match="^`out_dir` holds a NUL character"):
        by_y(book, "out_dir", "a\0b")
    with pytest.raises(InputError, match="^`out_dir` holds a NUL character"):
        command_line(book, "out_dir", "a\0b")


def test_a_negative_exponent_is_no_option(book):
    assert command_line(book, "a_float", "-1e-4").a_float == -1e-4


@FEW
@given(kind=st.sampled_from(KINDS), value=VALUES)
def test_texts_of_papermill_arrive_or_are_refused(book, kind, value):
    text = written_out(kind, value) if kind == "str" and isinstance(value, str) else repr(value)
    got = arrived(by_p, book, kind, text)
    if isinstance(got, ValueError):  # it reads 3 and nan as numbers, lists and dicts as texts
        number = isinstance(typed(text, "float"), (float, bool))
        assert kind in ("list", "dict") or expected(kind, value) is ... or number
    else:
        right = text if kind == "str" and text != "None" else expected(kind, value)
        assert equal(got, right), f"{text!r} arrived as {got!r}"


@pytest.mark.parametrize(
    "kind, value, word",
    [
        ("dict", {1: 2}, "the keys of `a_dict` must be texts: write '1', not 1"),
        ("dict", {"a": {None: 2}}, "must be texts"),
        ("list", [(1, 2)], "must be made of numbers, texts, lists and dicts"),
        ("list", [b"x"], "must be made of"),
        ("list", [1, {2}], "must be made of"),
        ("str", "\ud800", "`a_str` is no text in UTF-8"),
    ],
)
def test_what_a_door_would_change_is_refused(book, kind, value, word):
    for door in (by_cell, command_line):
        said = value if door is by_cell else written_out(kind, value)
        assert word in str(arrived(door, book, kind, said))


def test_keys_that_papermill_makes_texts_arrive_as_texts(book):
    assert by_y(book, "a_dict", {1: 2}).a_dict == {"1": 2}


# --- places

PLACES = {
    "01_ddpo": ("model", "judge"),
    "02_flow_grpo": ("model",),
    "10_regret_preferences": ("human_labels",),
    "12_secrets_rm": ("encoder", "pairs_file"),
    "14_openrubrics": ("generator_model", "judge_model"),
    "13_skywork_v2": ("encoder", "text_reward"),
    "15_opinpref": ("encoder",),
    "16_rluf": ("encoder",),
    "17_vpl": ("model",),
    "18_pamela": ("encoder", "ratings_file"),
    "19_dpa": ("text_model",),
    "20_rpcd": ("encoder", "tone_net"),
    "21_visionprefer": ("encoder", "annotator"),
    "22_aes_r1": ("model",),
    "24_unifiedreward_flex": ("encoder", "judge_model"),
    "23_rationalrewards": ("critic", "painter"),
    "27_critique_rl": ("model",),
    "30_raft": ("model", "text_model", "judge"),
    "31_rlcm": ("model", "rival", "judge"),
    "32_d3po": ("model", "judge"),
    "35_itercomp": ("model", "fast", "eyes", "judge"),
    "36_parrot": ("model", "judge"),
    "37_reward_hacking": ("model", "judge", "inspector", "witness"),
    "39_tdm_r1": ("model", "student"),
    "38_adv_grpo": ("model", "stronger", "proxy", "backbone", "judge"),
    "40_attrictrl": ("model", "judge"),
}
CASES = [(name, place) for name, places in PLACES.items() for place in places]
SHIPPED = {"model": "epsilon", "rival": "epsilon", "judge": "clip"}
SHIPPED |= {"fast": "consistency", "eyes": "clip"}
SHIPPED |= {"stronger": "flow", "proxy": "clip"}
SHIPPED |= {"encoder": "clip", "text_model": "arithmetic", "tone_net": "arithmetic"}
SHIPPED |= {"generator_model": "arithmetic", "judge_model": "arithmetic"}
SHIPPED |= {"text_reward": "arithmetic"}
SHIPPED |= {"critic": "vision_language", "painter": "flow"}
SHIPPED |= {"text_reward": "arithmetic", "annotator": "vision_language"}
TEXT_MODELS = {"22_aes_r1": "vision_language", "27_critique_rl": "arithmetic"}


def known(notebook):
    if not (ROOT / "notebooks" / f"{notebook}.ipynb").is_file():
        pytest.skip(f"{notebook} is not here")
    return find(notebook)


@pytest.mark.parametrize("notebook, place", CASES)
def test_every_place_is_found_from_another_folder_and_a_wrong_one_refused(
    tmp_path, monkeypatch, notebook, place
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    kind = TEXT_MODELS.get(notebook, SHIPPED.get(place))
    target = tmp_path / "mine"
    if kind:
        target.symlink_to(ROOT / "data" / "models" / kind)
    else:
        target.mkdir()
    for said in ("mine", "./mine", "~/mine", str(target)):
        found = checked_parameters(known(notebook), [(place, said)])
        assert found == {place: str(target.resolve())}
    for wrong in ("./nowhere", "~/nowhere", str(tmp_path / "no" / "where"), "a/b/c", "mine2"):
        with pytest.raises(InputError, match=f"`{place}` is '.*', and there is no such") as error:
            checked_parameters(find(notebook), [(place, wrong)])
        assert len(str(error.value).splitlines()) == 1


def test_own_names_and_hub_ids_are_left_alone():
    for notebook, place, value in (
        ("01_ddpo", "model", "embedded"),
        ("16_rluf", "encoder", "words"),
        ("20_rpcd", "tone_net", "lexicon"),
        ("21_visionprefer", "annotator", "simulated"),
        ("15_opinpref", "encoder", "all-MiniLM-L6-v2"),
        ("19_dpa", "text_model", "smollm2-135m-instruct"),
        ("30_raft", "text_model", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("22_aes_r1", "model", "data/models/vision_language"),
        ("10_regret_preferences", "human_labels", ""),
    ):
        assert checked_parameters(known(notebook), [(place, value)]) == {place: value}
    with pytest.raises(InputError, match="`judge` is 'openai/clip'.*; check the path$"):
        checked_parameters(find("36_parrot"), [("judge", "openai/clip")])  # folders only


def test_a_prefix_of_files_is_a_place(tmp_path):
    (tmp_path / "people_Y.npy").write_bytes(b"")
    given = [("human_labels", str(tmp_path / "people"))]
    assert checked_parameters(known("10_regret_preferences"), given) == dict(given)


@pytest.fixture
def photographs(tmp_path):
    """A whole pipeline whose pictures are no sticker scenes."""
    folder = shutil.copytree(ROOT / "data" / "models" / "epsilon", tmp_path / "photographs")
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": 8', '"latent_channels": 4'))
    return str(folder)


@pytest.mark.parametrize("notebook", ["01_ddpo", "30_raft", "32_d3po"])
def test_a_model_of_other_pictures_needs_its_judge(photographs, notebook):
    with pytest.raises(InputError, match="`judge` is needed for the pictures of .*photographs"):
        checked_parameters(known(notebook), [("model", photographs)])
    judge = str(ROOT / "data" / "models" / "clip")
    found = checked_parameters(find(notebook), [("model", photographs), ("judge", judge)])
    assert found == {"model": photographs, "judge": judge}
    stickers = str(ROOT / "data" / "models" / "epsilon")
    assert checked_parameters(find(notebook), [("model", stickers)]) == {"model": stickers}


def test_what_the_full_profile_names_must_be_there():
    with pytest.raises(InputError, match="`judge` is 'clip-vit-large-patch14', and there is no"):
        checked_parameters(known("32_d3po"), [("profile", "full")])


@pytest.mark.parametrize(
    "kind", ["a file", "empty", "truncated", "not safetensors", "pickled", "broken index"]
)
def test_a_damaged_model_is_refused_by_command_line_and_notebook(tmp_path, kind):
    folder = tmp_path / "flow"
    if kind == "a file":
        folder.write_text("")
    elif kind == "empty":
        folder.mkdir()
    else:
        shutil.copytree(ROOT / "data" / "models" / "flow", folder)
        weights = sorted((folder / "transformer").glob("*.safetensors"))[0]
        if kind == "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        elif kind == "not safetensors":
            weights.write_bytes(b"PK" + b"0" * 500)
        elif kind == "pickled":
            weights.rename(weights.with_suffix(".bin"))
        else:
            (folder / "model_index.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError) as early:
        checked_parameters(known("02_flow_grpo"), [("model", str(folder))])
    assert len(str(early.value).splitlines()) == 1 and "flow" in str(early.value)
    cells = [
        c.source for c in nbformat.read(find("02_flow_grpo"), 4).cells if c.cell_type == "code"
    ]
    space = {"In": [next(c for c in cells if "profile: str" in c)], "wb": wb}
    exec(space["In"][0], space)
    call = next(c for c in cells if "wb.parameters(" in c)
    space["In"] += [f"# Parameters\nmodel = {str(folder)!r}\n", call]
    exec(space["In"][1], space)
    with pytest.raises(wb.ParameterError) as late:
        exec(call, space)
    assert str(late.value) == str(early.value)


def test_a_place_of_the_parameters_cell_keeps_its_name_and_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT / "notebooks")
    (tmp_path / "mine").mkdir()
    cell = CELL.replace("a_str: str = None  # any text", "{}")
    call = CALL.replace("a_str", "at")
    for text, right in (
        ("data/models/flow", "data/models/flow"),
        ("~/mine", str(tmp_path / "mine")),
        ("../data", str(ROOT / "data")),
    ):
        line = f'at: str = "{text}"  # a folder'
        assert in_a_kernel(write(tmp_path / "nb.ipynb", cell.format(line), call)).at == right
    with pytest.raises(wb.ParameterError, match="`at` is 'nowhere', and there is no such folder"):
        in_a_kernel(
            write(tmp_path / "nb.ipynb", cell.format('at: str = "nowhere"  # folder'), call)
        )


def test_a_run_folder_at_home_is_found(book, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked_parameters(book, [("out_dir", "~/r2")]) == {"out_dir": str(tmp_path / "r2")}
    text = CELL.replace("out_dir: str = None", 'out_dir: str = "~/r2"')
    assert in_a_kernel(write(book.with_name("home.ipynb"), text)).out_dir == str(tmp_path / "r2")


# --- with real processes

SAY = (
    "\nimport json, pathlib\npathlib.Path(p.out_dir, 'said.json').write_text(json.dumps(p.values))"
)


@pytest.mark.executes
def test_a_real_run_gets_what_was_typed(tmp_path):
    book = write(tmp_path / "98_trial.ipynb", call=CALL + SAY)
    said = {"a_float": "-1e-4", "a_str": "a=b # 'c' \"d\"\n☃ ~ \\", "a_dict": "{'1': [True, None]}"}
    given = [word for name, text in said.items() for word in ("-p", name, text)]
    command = [sys.executable, "-m", "rlgenkit", "run", str(book), *given, "--out", "run"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = json.loads((tmp_path / "run" / "said.json").read_text())
    assert (got["a_float"], got["a_str"]) == (-1e-4, said["a_str"])
    assert got["a_dict"] == {"1": [True, None]}
    wrong = [*command[:5], "-p", "a_dict", "{1: 2}"]
    done = subprocess.run(wrong, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "must be texts" in done.stderr


def test_list_shows_what_each_profile_takes(book):
    from rlgenkit.__main__ import parameter_rows

    head, *rows = parameter_rows(write(book.with_name("listed.ipynb")))
    assert head == ["", "type", "quick", "full", "range", ""]
    assert ["a_float", "float", "0.5", "0.5", "", ""] in rows
    assert ["seed", "int", "0", "0", "0..2147483647", ""] in rows
    assert not any("None" in row for row in rows)
