"""The script of the README with a person's own reward, run from another folder as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPT = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]


def test_a_reward_of_ones_own_from_another_folder(tmp_path):
    path = tmp_path / "own_reward.py"
    path.write_text(SCRIPT, encoding="utf-8")
    model = str(ROOT / "data" / "models" / "epsilon")
    done = subprocess.run(
        [sys.executable, path.name, model, "1"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rewards = re.findall(r"round \d: mean reward (-?\d\.\d+)", done.stdout)
    assert len(rewards) == 1


def test_the_script_needs_no_arguments():
    assert 'sys.argv[1:] or ["data/models/epsilon", "20"]' in SCRIPT
    assert "python own_reward.py`" in README


def test_the_script_is_short():
    lines = [line for line in SCRIPT.splitlines() if line.strip()]
    assert len(lines) <= 25
