"""The three ways to more cores as the README tells them: every command parses, the script runs."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from ci import series as runner
from rlgenkit.__main__ import parser
from rlgenkit.commands.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## From one core to many\n")[1].split("\n## ")[0]
WAYS = ["One machine", "Several GPUs", "A cluster"]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, flags=re.S | re.M)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


def understood_by_ours(words):
    assert words[:3] == ["python", "-m", "rlgenkit"]
    return vars(parser().parse_args(words[3:]))


def understood_by_accelerate(words):
    from accelerate.commands.launch import launch_command_parser

    assert words[:2] == ["accelerate", "launch"]
    return vars(launch_command_parser().parse_args(words[2:]))


def understood_by_torchrun(words):
    from torch.distributed.run import parse_args

    return vars(parse_args(words[1:]))


def understood_by_ray(words):
    scripts = pytest.importorskip("ray.scripts.scripts")
    command = scripts.cli.commands[words[1]]
    return command.make_context(words[1], words[2:]).params


def understood_by_the_shell(words):
    name, equals, value = words[1].partition("=")
    return len(words) == 2 and name.isidentifier() and equals and value


PARSERS = {
    "export": understood_by_the_shell,
    "python": understood_by_ours,
    "accelerate": understood_by_accelerate,
    "torchrun": understood_by_torchrun,
    "ray": understood_by_ray,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_understood(command):
    words = shlex.split(command)
    assert PARSERS[words[0]](words)


def test_the_ways_are_three_of_ten_lines():
    parts = re.split(r"^\*\*(.+?)\.\*\*", SECTION, flags=re.M)
    assert parts[1::2] == WAYS
    for way, text in zip(WAYS, parts[2::2]):
        lines = [x for x in text.splitlines() if x.strip() and not x.startswith("```")]
        assert len(lines) <= 14, way
    assert {shlex.split(c)[0] for c in COMMANDS} == PARSERS.keys()


def data_parallel_script():
    """The README's script with the changes that its section on several GPUs tells."""
    script = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    script = script.replace("import torch\n", "import accelerate\nimport torch\n", 1)
    for part in re.findall(r"(?:^[ -].*\n)(?:^\+.*\n)+", dict(BLOCKS)["diff"], flags=re.M):
        old, *new = part.splitlines()
        assert script.count(f"\n{old[1:]}\n") == 1, old
        kept = [old[1:]] if old[0] == " " else []
        script = script.replace(old[1:], "\n".join([*kept, *(line[1:] for line in new)]))
    return script


def test_the_script_of_the_readme_runs_in_two_processes(tmp_path):
    (tmp_path / "own_reward.py").write_text(data_parallel_script(), encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    model = str(ROOT / "data" / "models" / "epsilon")
    done = subprocess.run(
        [sys.executable, *launch, "own_reward.py", model, "1"],
        cwd=tmp_path,
        env={**os.environ, **runner.offline(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(re.findall(r"round 0: mean reward -?\d\.\d+", done.stdout)) == 2
