"""Quick cells of every notebook, replayed by nbval against their committed text."""

import json
import os
import re

import pytest

from ci import replay, warm
from rlgenkit.commands.places import TEMPLATE, series

GROUPS = 6  # so that two workers share the series
FEW = 2  # compared cells that a notebook has at least
pytestmark = [pytest.mark.executes, pytest.mark.skipif(os.name != "posix", reason="forks kernels")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for copies, while kernels are forked."""
    folder = tmp_path_factory.mktemp("replay")
    with warm.kernels(folder) as env, pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        yield folder


def counted(path, tag):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return sum(tag in cell["metadata"].get("tags", []) for cell in cells)


@pytest.mark.parametrize("group", range(GROUPS))
def test_cells_say_what_they_said(place, group):
    notebooks = [*series(), TEMPLATE][group::GROUPS]
    done = replay.replay([replay.copied(path, place) for path in notebooks])
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(passed[1]) >= sum(counted(path, replay.CHECK) for path in notebooks)


def test_every_notebook_has_cells_that_are_compared():
    bare = [p.stem for p in [*series(), TEMPLATE] if counted(p, replay.CHECK) < FEW]
    assert bare == [], f"tag their cells with `python -m ci.replay {' '.join(bare)}`"


def test_a_changed_digit_is_found(place):
    path = replay.copied(TEMPLATE, place)
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        text = "".join(t for o in cell.get("outputs", []) for t in o.get("text", []))
        if replay.CHECK in cell["metadata"].get("tags", []) and re.search(r"\d\.\d", text):
            changed = re.sub(r"(\d\.)(\d)", lambda m: m[1] + str((int(m[2]) + 1) % 10), text)
            cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": [changed]}]
            break
    path.write_text(json.dumps(book), encoding="utf-8")
    done = replay.replay([path])
    assert done.returncode == 1 and "1 failed" in done.stdout


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("0.12345", "0.12349", True),
        ("0.12", "0.13", False),
        ("1.5e-08", "-3.0e-09", False),
        ("1.5e-08", "3e-09", True),
        ("took 1.25 s", "took 9 s", True),
        ("runs/a/b", "runs/c", True),
        ("Figure 39.1: one", "Figure 39.2: one", True),
        ("4 of 5", "3 of 5", False),
    ],
)
def test_what_is_rounded(one, other, same):
    assert (replay.rounded(one) == replay.rounded(other)) == same


def test_what_a_cell_makes_and_reads():
    made, read = replay.names_of("import a.b\nfrom c import d as e\nx, y = f(z)\ndef g(): return h")
    assert made >= {"a", "e", "x", "y", "g"} and read >= {"f", "z", "h"}


def test_a_copy_differs_in_its_run_folder_alone(tmp_path):
    old, new = (json.loads(p.read_text()) for p in (TEMPLATE, replay.copied(TEMPLATE, tmp_path)))
    changed = [(a, b) for a, b in zip(old["cells"], new["cells"]) if a != b]
    assert len(changed) == 1 and str(tmp_path) in "".join(changed[0][1]["source"])
    assert (tmp_path / "data" / "manifest.json").is_file()
