"""The command layer's own parts: committed form, lint, teaching copies, reports, data manifest."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from rlgenkit.__main__ import PASSED_ON, parser
from ci import doctor, export, lint, manifest, measure
from rlgenkit.commands import committed
from rlgenkit.commands.inputs import split_values, typed
from rlgenkit.commands.places import ROOT, TEMPLATE, find, series
from rlgenkit.commands.experiment import claims_table
from rlgenkit.workbook.parameters import check_overrides, declared


def executed() -> dict:
    """The template as if it had just run on somebody's machine, with everything that must go."""
    nb = committed.normalize(committed.read(TEMPLATE))
    codes = [c for c in nb["cells"] if c["cell_type"] == "code"]
    for count, cell in enumerate(codes, 7):
        cell["execution_count"] = count
        cell["metadata"] |= {"papermill": {"duration": 1.5}, "execution": {"iopub.status": "x"}}
    local = f"{ROOT}/runs/x and <a at 0x7f00deadbeef>\n"
    codes[2]["outputs"] = [
        {"output_type": "stream", "name": "stderr", "text": "warning\n"},
        {"output_type": "stream", "name": "stdout", "text": local},
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {committed.WIDGET: {"model_id": "a"}, "text/plain": "IntSlider()"},
        },
        {
            "output_type": "execute_result",
            "execution_count": 9,
            "metadata": {},
            "data": {"text/plain": "1"},
        },
    ]
    nb["cells"].insert(
        3,
        {
            "cell_type": "code",
            "id": "injected",
            "source": "# Parameters\nseed = 1",
            "metadata": {"tags": ["injected-parameters"]},
            "outputs": [],
            "execution_count": 8,
        },
    )
    nb["metadata"] |= {"papermill": {"input_path": str(ROOT)}, "widgets": {}}
    return nb


def test_normalize_removes_the_machine_and_keeps_the_notebook():
    nb = executed()
    before = copy.deepcopy(nb)
    clean = committed.normalize(nb)
    text = committed.text_of(clean)
    codes = [c for c in clean["cells"] if c["cell_type"] == "code"]
    assert nb == before and committed.normalize(clean) == clean
    assert [c["execution_count"] for c in codes] == list(range(1, len(codes) + 1))
    assert [c["id"] for c in clean["cells"]] == [c["id"] for c in committed.read(TEMPLATE)["cells"]]
    for trace in (str(ROOT), 'papermill":', "stderr", "IntSlider", "7f00dead", "injected"):
        assert trace not in text, trace
    assert codes[2]["outputs"][0]["text"].startswith("runs/x")
    assert codes[2]["outputs"][-1]["execution_count"] == codes[2]["execution_count"]
    assert any("parameters" in lint.tags(c) for c in codes)


def test_freshness_follows_the_code_and_not_the_prose():
    nb = committed.normalize(executed())
    nb["metadata"]["rlgenkit"] = {"source_hash": committed.source_hash(nb)}
    assert committed.freshness(nb, "x") == []
    prose, code, counts = copy.deepcopy(nb), copy.deepcopy(nb), copy.deepcopy(nb)
    prose["cells"][0]["source"] += " more"
    code["cells"][2]["source"] += " # more"
    counts["cells"][4]["execution_count"] = 40
    assert committed.freshness(prose, "x") == []
    assert "older than the code" in committed.freshness(code, "x")[0]
    assert "not a clean run" in committed.freshness(counts, "x")[0]


BREAKAGE = {
    "heading": (
        lambda t: t.replace("## 9. Ablation: without the baseline", "## 9. Less"),
        "'## Ablation' is missing",
    ),
    "order": (
        lambda t: t.replace("## 3. Equations", "## 3. Exercises").replace(
            "## 12. Exercises", "## 12. Equations"
        ),
        "out of order",
    ),
    "level": (
        lambda t: t.replace("## 3. Equations", "## 3. Equations\\n#### deep"),
        "skips a level",
    ),
    "purpose": (
        lambda t: t.replace("The next cell draws the three numbers of this one run.", ""),
        "no sentence",
    ),
    "seeing": (
        lambda t: re.sub(
            r'"Without a baseline the variance is.*?averages out', '"So', t, flags=re.S
        ),
        "says what it shows",
    ),
    "help": (lambda t: t.replace("  # learning rate of Adam", ""), "parameter"),
    "untyped": (lambda t: t.replace("lr: float = None", "lr = None"), "parameters cell"),
    "common": (
        lambda t: t.replace('device: str = \\"auto\\"', 'gadget: str = \\"auto\\"'),
        "device is missing",
    ),
    "not in the table": (
        lambda t: re.sub(r"batch( +\d)", r"lot\1", t),
        "`batch`, which has no row",
    ),
    "fixed value": (lambda t: t.replace("lr: float = None", "lr: float = 0.05"), "lr must be None"),
    "width": (
        lambda t: t.replace("import torch\\n", "import torch  # " + "x" * 80 + "\\n"),
        "characters",
    ),
    "install": (
        lambda t: t.replace("import torch\\n", "%pip install torch\\n"),
        "installs packages",
    ),
    "pickle": (lambda t: t.replace("import torch\\n", "import pickle\\n"), "pickle"),
    "goals": (lambda t: t.replace("**Learning goals.**", "Well."), "Learning goals"),
    "diagram": (lambda t: t.replace("data:image/svg+xml", "data:image/png"), "no diagram"),
    "inline svg": (
        lambda t: t.replace("## 3. Equations", "## 3. Equations\\n<svg></svg>"),
        "leaves out <svg>",
    ),
    "alt of a diagram": (
        lambda t: re.sub(r"<img alt=.*? src=", r'<img alt=\\"\\" src=', t),
        "diagram without alt",
    ),
    "color by number": (lambda t: t.replace("fill='gray'", "fill='#888'"), "a diagram with #"),
    "web link": (lambda t: t.replace("https://", "ftp://"), "no web link"),
    "dead link": (
        lambda t: t.replace("(00_start_here.ipynb)", "(00_nowhere.ipynb)"),
        "leads nowhere",
    ),
    "loose name": (
        lambda t: t.replace("[00](00_start_here.ipynb)", "`00_start_here`"),
        "named without a link",
    ),
    "answer": (
        lambda t: t.replace('wb.predict(\\"99.q2\\")', 'wb.predict(\\"a?\\", [1, 2], 0)'),
        "answer of a",
    ),
    "own reference": (
        lambda t: t.replace('wb.check(\\"99.3\\"', "wb.Check(len"),
        "reference of a check",
    ),
    "few checks": (lambda t: re.sub(r"wb.check\(..99.[34].., \w+\)", "1", t), "fewer than 3"),
    "unchecked stub": (
        lambda t: re.sub(r"wb.check\(..99.1.., \w+\)", "1", t),
        "stub log_prob has no wb.check",
    ),
    "silent stub": (
        lambda t: re.sub(r' *\\"\\"\\"Log of.*?\\n"', '"', t),
        "a stub needs a docstring",
    ),
}


@pytest.mark.parametrize("name", BREAKAGE)
def test_lint_finds(name, tmp_path):
    change, word = BREAKAGE[name]
    text = TEMPLATE.read_text(encoding="utf-8")
    broken = tmp_path / TEMPLATE.name
    broken.write_text(text, encoding="utf-8")
    assert lint.lint(broken) == []
    broken.write_text(change(text), encoding="utf-8")
    assert broken.read_text(encoding="utf-8") != text, "the change did not hit"
    found = lint.lint(broken)
    assert any(word in row for row in found), found


def test_lint_of_a_notebook_in_the_old_shape(tmp_path):
    """What the notebooks keep to that are not rewritten yet."""
    old = next((p for p in series()[1:] if not lint.is_new(p)), None)
    if old is None:
        pytest.skip("every notebook has the new shape")
    text = old.read_text(encoding="utf-8")
    for word, without in (
        ("What breaks", "heading '## What breaks' is missing"),
        ("What you should see", "says 'What you should see'"),
    ):
        (tmp_path / old.name).write_text(text.replace(word, "So"), encoding="utf-8")
        assert any(without in row for row in lint.lint(tmp_path / old.name))


def test_lint_of_a_copy_of_the_template(monkeypatch, tmp_path):
    path = tmp_path / "98_trial.ipynb"
    path.write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    assert lint.lint(path) == ["checks/trial.py is missing: its exercises stand there"]
    monkeypatch.setattr(lint, "is_new", lambda path: True)
    found = lint.lint(path)
    assert any("# 99. Template" in row for row in found) and any(
        "write 98_trial" in r for r in found
    )
    monkeypatch.undo()
    new = [path for path in series() if lint.is_new(path)]
    assert lint.OLD >= {path.stem[:2] for path in series()} - {path.stem[:2] for path in new}
    assert [row for p in new for row in lint.leftovers(p, committed.read(p)["cells"])] == []


def test_table_of_numbers():
    row = measure.measure(TEMPLATE)
    assert row["notebook"] == "_template" and row["docstrings %"] == "100"
    assert int(row["lines max"]) <= 30 and 5 < float(row["words / sentence"]) < 20
    heads, line = measure.table([TEMPLATE]).splitlines()
    assert heads.startswith("notebook") and line.split() == list(row.values())


def test_lint_of_figures():
    picture = {"output_type": "display_data", "data": {"image/png": "aa"}, "metadata": {}}
    cells = [
        {"cell_type": "code", "source": "show()", "outputs": [picture]},
        {"cell_type": "markdown", "source": "Nothing."},
    ]
    assert len(lint.figures(cells)) == 2
    assert "no sentence after the figure" in lint.figures(cells, told=False)[1]
    picture["metadata"] = {"image/png": {"alt": "reward rises from 1 to 2"}}
    cells[1]["source"] = "**What you should see**: a rise."
    assert lint.figures(cells) == []


def test_slides_have_sections():
    assert "<section" in export.slides(committed.read(TEMPLATE))


RESULT = {
    "schema": 1,
    "notebook": "01_x",
    "title": "X",
    "profile": "default",
    "seeds": [0, 1],
    "paper": {"title": "T", "year": 2020, "arxiv": "1"},
    "parameters": {},
    "numbers": {},
    "provenance": {"commit": "c", "versions": {"torch": "2"}, "device": "cpu", "threads": 2},
    "timing": {"seconds": 75, "hardware": "h"},
    "claims": [
        {
            "id": "C1",
            "paper": "p",
            "statement": "a | b",
            "values": [1, 2],
            "threshold": 1.0,
            "direction": ">=",
            "unit": "x",
            "value": 1.5,
            "interval": [1.0, 2.0],
            "n": 2,
            "verdict": "supported",
            "note": "why",
        },
        {
            "id": "C2",
            "paper": "q",
            "statement": "",
            "values": [],
            "threshold": None,
            "direction": "",
            "unit": "",
            "value": None,
            "interval": None,
            "n": 0,
            "verdict": "not testable at this scale",
            "note": "",
        },
    ],
}


def test_table_of_claims_in_the_terminal():
    assert "supported" in claims_table(RESULT) and "1.5 [1, 2] x" in claims_table(RESULT)


def test_data_files_are_the_ones_named():
    assert doctor.data_problems() == []
    listed = {r["path"] for r in doctor.manifest()}
    assert {str(p.relative_to(ROOT)) for p in manifest.files()} == listed, (
        "python -m rlgenkit manifest, then report"
    )


def test_doctor_names_a_changed_file(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.bin").write_bytes(b"1")
    row = {"path": "data/a.bin", "bytes": 1, "sha256": doctor.sha256(tmp_path / "data" / "a.bin")}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({"files": [row]}), encoding="utf-8")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert doctor.data_problems() == []
    (tmp_path / "data" / "a.bin").write_bytes(b"2")
    assert "not the file" in doctor.data_problems()[0]
    (tmp_path / "data" / "a.bin").unlink()
    assert "missing" in doctor.data_problems()[0]


def test_offline_hook_blocks_the_network():
    code = (
        "import socket\n"
        "try:\n    socket.create_connection(('192.0.2.1', 80), timeout=2)\n"
        "except ConnectionRefusedError as error:\n    print('the network is blocked' in str(error))\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close(); print('local')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "ci" / "offline")},
    )
    assert done.stdout.split() == ["True", "local"], done.stderr


def told() -> list[tuple[str, str]]:
    """(file, command) of every command line that the pages and notebooks tell a reader to type."""
    texts = [(p.name, p.read_text(encoding="utf-8")) for p in ROOT.glob("*.md")]
    texts += [
        (p.name, "".join(c["source"]))
        for p in [*series(), TEMPLATE]
        for c in committed.read(p)["cells"]
        if c["cell_type"] == "markdown"
    ]
    line = re.compile(r"(?:python -m rlgenkit|papermill) [-\w][^`\n#]+")
    joined = [(name, re.sub(r"\\\n\s*", "", text)) for name, text in texts]
    return [(name, found) for name, text in joined for found in line.findall(text)]


def settings(command: str) -> tuple[str, list[tuple[str, str]]]:
    """(notebook, [(parameter, text)]) that the command sets; SystemExit where it has no such form."""
    words = shlex.split(command)
    if words[0] == "papermill":
        flags = [k for k, word in enumerate(words) if word == "-p"]
        return words[1].removesuffix(".ipynb"), [tuple(words[k + 1 : k + 3]) for k in flags]
    if words[3] in PASSED_ON:
        return "", []
    args = parser().parse_args(words[3:])
    if args.command == "sweep":
        axes = [axis.split("=", 1) for axis in args.axes]
        return args.notebook, [(name, value) for name, text in axes for value in split_values(text)]
    return (args.notebook, args.pairs) if args.command == "run" else ("", [])


@pytest.mark.parametrize("command", sorted({f"{name}: {text.strip()}" for name, text in told()}))
def test_commands_that_pages_tell_are_understood(command):
    notebook, pairs = settings(command.split(": ", 1)[1])
    if notebook in ("", "NN", "NB") or not pairs:
        return
    declaration = declared(find(notebook))
    for name, text in pairs:
        kind = declaration.types.get(name, "str").removesuffix(" | None")
        check_overrides(declaration, {name: typed(text, kind)})
