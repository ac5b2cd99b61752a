"""What decides a notebook's outcome: the files that it reaches, and the key over them."""

import nbformat
import pytest

from ci import closure
from ci import series as runner
from rlgenkit.commands import run

FILES = {
    "rlgenkit/__init__.py": "",
    "rlgenkit/rewards/__init__.py":
        'from rlgenkit._lazy import lazy\nx = lazy(__name__, {"a": "one two", "b": "three"})\n',
    "rlgenkit/rewards/a.py": "def one():\n    from rlgenkit.worlds import c\n",
    "rlgenkit/rewards/b.py": "from . import d\n",
    "rlgenkit/rewards/d.py": "D = 1\n",
    "rlgenkit/worlds/__init__.py": "",
    "rlgenkit/worlds/c.py": "from rlgenkit import models\nmodels.net\n",
    "rlgenkit/worlds/e.py": "",
    "rlgenkit/models/__init__.py":
        'from rlgenkit._lazy import lazy\nx = lazy(__name__, {"policy": "net", "tokens": "say"})\n',
    "rlgenkit/models/policy.py": "", "rlgenkit/models/tokens.py": "",
    "rlgenkit/workbook/__init__.py": "", "rlgenkit/workbook/run.py": "",
    "data/manifest.json": "{}", "requirements.lock": "a==1\n",
}  # fmt: skip
REWARD_A = ["__init__", "models/policy", "rewards/a", "worlds/__init__", "worlds/c"]
REWARD_B = ["__init__", "rewards/b", "rewards/d"]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A small package in place of ours; house(*cells) writes a notebook."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    caches = [f for f in vars(closure).values() if hasattr(f, "cache_clear")]

    def clear():
        for function in caches:
            function.cache_clear()

    def write(*codes):
        clear()
        path = tmp_path / "notebooks" / "01_x.ipynb"
        path.parent.mkdir(exist_ok=True)
        cells = [nbformat.v4.new_code_cell(code) for code in codes]
        for i, cell in enumerate(cells):
            cell.id = f"c{i}"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    yield write
    clear()


def names(path) -> list[str]:
    package = closure.ROOT / "rlgenkit"
    return [p.relative_to(package).with_suffix("").as_posix() for p in closure.closure(path)]


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("from rlgenkit import rewards\nrewards.one()", REWARD_A),
        ("from rlgenkit import rewards as R", ["__init__"]),
        ("from rlgenkit.rewards import two", REWARD_A),
        ("from rlgenkit.rewards.b import three", REWARD_B),
        ("from rlgenkit.rewards import d as D", ["__init__", "rewards/d"]),
        ("import rlgenkit.rewards as R\nR.b.three", REWARD_B),
        ("import rlgenkit\nrlgenkit.rewards.three()", REWARD_B),
        ("def f():\n    from rlgenkit import rewards\n    return rewards.three", REWARD_B),
        ("from rlgenkit import rewards\nvars(rewards)", sorted({*REWARD_A, *REWARD_B})),
        ("from rlgenkit.rewards import *", sorted({*REWARD_A, *REWARD_B})),
        ("from rlgenkit import rewards\ndef f(rewards):\n    return rewards", ["__init__"]),
        ("from rlgenkit import rewards\n[rewards for rewards in range(3)]", ["__init__"]),
        ("run('python', '-m', 'rlgenkit.worlds.e')", ["__init__", "worlds/__init__", "worlds/e"]),
        ("%matplotlib inline\nimport torch\nx = 'see rlgenkit.worlds.e'", []),
    ],
)
def test_the_closure_holds_what_is_used(house, code, wanted):
    assert names(house(code)) == sorted(wanted)


def test_aliases_serve_later_cells(house):
    assert names(house("from rlgenkit import rewards as R", "R.three()")) == REWARD_B


def test_the_key_follows_the_files_that_are_reached(house, tmp_path):
    path = house("from rlgenkit import rewards as R\nR.three()")
    before, changed = closure.key(path), []
    for name in (
        *FILES,
        "notebooks/claims/01_x.toml",
        "notebooks/claims/02_y.toml",
        "notebooks/checks/x.py",
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        old = file.read_bytes() if file.is_file() else None
        file.write_bytes((old or b"") + b"\n")
        if closure.key(path) != before:
            changed.append(name)
        file.unlink() if old is None else file.write_bytes(old)
    assert changed == [
        "rlgenkit/__init__.py",
        "rlgenkit/rewards/b.py",
        "rlgenkit/rewards/d.py",
        "rlgenkit/workbook/__init__.py",
        "rlgenkit/workbook/run.py",
        "data/manifest.json",
        "requirements.lock",
        "notebooks/claims/01_x.toml",
        "notebooks/checks/x.py",
    ]


def test_the_key_follows_what_the_cells_say(house):
    key = closure.key(house("x = 'a'  # why\ny = 2"))
    assert closure.key(house('x = "a"\n\ny = (2)')) == key
    assert closure.key(house("x = 'a'\ny = 3")) != key
    assert closure.key(house("x = 'a'", "y = 2")) != key
    path = house("x = 'a'\ny = 2")
    assert closure.key(path, "again") != key == closure.key(path)
    assert closure.key(path, machine=False) != key


def test_outcomes_are_made_once_per_key(house, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "OUTCOMES", tmp_path / "outcomes")
    made = []

    def make(folder, code=0):
        folder.mkdir()
        made.append(folder)
        return run.Outcome(
            code=code, seconds=1.0, sentence="", out_dir=folder, notebook=folder / "01_x.ipynb"
        )

    path = house("x = 1")
    first = runner.shared(path, "quick", make)
    assert runner.shared(path, "quick", make) == first and len(made) == 1
    runner.shared(path, "again", make)
    assert len(made) == 2 and made[0].is_dir()
    house("x = 2")
    failed = runner.shared(path, "quick", lambda folder: make(folder, 1))
    assert failed.code == 1 and not made[0].exists() and made[1].is_dir()
    assert runner.shared(path, "quick", make) == failed and len(made) == 3
    monkeypatch.setattr(runner, "session", lambda: "a later call")
    assert runner.shared(path, "quick", make).code == 0
