"""Two policy updates of an image policy, alone or in several processes: writes what came out.

`torchrun --standalone --nproc_per_node 2 tests/data_parallel.py OUT GROUPS`; the test beside it compares.
"""

import sys
from dataclasses import replace

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from rlgenkit import models, optimizers, samplers

out, groups = sys.argv[1], int(sys.argv[2])
accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
policy = models.image_policy(
    "data/models/flow", table=samplers.flow_table(4, noise=0.7), rank=2, chunk=3
)
# Adam divides by the size of a gradient, also of one that is only rounding; SGD does not.
optimizer = torch.optim.SGD(policy.parameters, lr=0.1)
captions = [f"{n} red stars" for n in ("two", "three", "four")][:groups]
generator = torch.Generator().manual_seed(0)
rollout = policy.sample([c for c in captions for _ in range(4)], generator)
rollout = replace(rollout, groups=torch.arange(groups).repeat_interleave(4))
scores = torch.rand(len(rollout), generator=generator)
advantages = optimizers.group_advantages(scores, rollout.groups)
with accelerator.split_between_processes(torch.arange(groups)) as mine:  # whole groups
    rows = torch.isin(rollout.groups, mine).nonzero()[:, 0]
found = {}
shared = accelerator if accelerator.num_processes > 1 else None
for step in range(2):
    loss = optimizers.clipped_ratio(advantages[rows], 1e-3)
    stats = optimizers.policy_update(
        policy, optimizer, rollout.rows(rows), loss, beta=0.01, accelerator=shared
    )
    found |= {f"{step}/{name}": torch.tensor(value) for name, value in stats.items()}
found |= {f"adapter/{k}": p.detach().clone() for k, p in enumerate(policy.parameters)}
found["rows"] = torch.tensor(len(rows))
save_file(found, f"{out}.{accelerator.process_index}")
