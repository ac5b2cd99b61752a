"""The script of the README with a person's own reward, run from another folder as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = '''
"""Make the pictures of the embedded model redder, with a reward of your own."""
import sys

import torch

from rlgenkit import models, optimizers, samplers, worlds


def redness(rollout):
    """Your reward: pictures [B, 3, H, W] in 0..1 -> scores [B]. It needs no gradient."""
    red, green, blue = rollout.output.mean((2, 3)).unbind(1)
    return red - (green + blue) / 2


table = lambda scheduler: samplers.ddim_table_from_scheduler(scheduler, 6)
policy = models.image_policy(sys.argv[1], table=table, rank=8)
optimizer = optimizers.make_optimizer(policy.parameters, 3e-3)
generator = torch.Generator().manual_seed(0)
for step in range(int(sys.argv[2])):
    prompts = worlds.sample_prompts(8, category="single", generator=generator)
    rollout = policy.sample(prompts, generator, copies=4)
    scores = redness(rollout)
    advantages = optimizers.group_advantages(scores, rollout.groups)
    for rows in torch.randperm(len(rollout), generator=generator).chunk(4):
        loss = optimizers.clipped_ratio(advantages[rows], 3e-3)
        part = rollout.rows(rows).columns(range(5))  # all but the last, thinnest step
        optimizers.policy_update(policy, optimizer, part, loss)
    print(f"round {step}: mean reward {scores.mean():.3f}")
'''


def test_a_reward_of_ones_own_from_another_folder(tmp_path):
    path = tmp_path / "own_reward.py"
    path.write_text(SCRIPT.lstrip(), encoding="utf-8")
    model = str(ROOT / "data" / "models" / "epsilon")
    done = subprocess.run([sys.executable, path.name, model, "1"], cwd=tmp_path, text=True,
                          capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rewards = re.findall(r"round \d: mean reward (-?\d\.\d+)", done.stdout)
    assert len(rewards) == 1


def test_the_script_is_short():
    lines = [line for line in SCRIPT.splitlines() if line.strip()]
    assert len(lines) <= 25
