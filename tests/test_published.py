"""Tiny pipelines with the classes and schedulers of published models, through the whole way of a policy."""

import json

import pytest
import torch

from rlgenkit import models, samplers
from rlgenkit.models.folders import check_pipeline
from tests.test_full_profile import CASES
from tests.tiny_pipelines import PUBLISHED, save_published

NAMES = sorted(folder.name for folder in PUBLISHED.iterdir() if folder.is_dir())
FAMILY = {"stable-diffusion-3": "flow", "flux": "flow", "lcm": "consistency"}


def table(scheduler):
    """The table of steps that a notebook would take for this scheduler."""
    kind = type(scheduler).__name__
    if "FlowMatch" in kind:
        mu = 0.6 if scheduler.config.get("use_dynamic_shifting") else None
        return samplers.flow_table(sigmas=samplers.sigmas_from_scheduler(scheduler, 4, mu))
    if kind == "LCMScheduler":
        return samplers.consistency_table_from_scheduler(scheduler, 4)
    return samplers.ddim_table_from_scheduler(scheduler, 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_of_a_published_pipeline_samples_and_replays_to_the_bit(name, tmp_path):
    save_published(name, tmp_path)
    base = models.load_policy(tmp_path, size=16)
    index = json.loads((PUBLISHED / name / "model_index.json").read_text())
    assert [type(base.scheduler).__name__] == index["scheduler"][1:]
    assert base.family == next((v for k, v in FAMILY.items() if name.startswith(k)), "epsilon")
    policy = models.image_policy(base, table=table, rank=2, guidance=2.0)
    rollout = policy.sample(["a red cat", "a blue star"], torch.Generator().manual_seed(0))
    assert rollout.output.shape == (2, 3, 16, 16) and rollout.output.isfinite().all()
    assert rollout.mask.sum(1).min() >= 2 and (rollout.log_probs[rollout.mask] != 0).all()
    assert torch.equal(policy.log_probs(rollout), rollout.log_probs)


def test_extra_entries_of_a_published_index_are_left_alone(tmp_path):
    save_published("stable-diffusion-v1-5", tmp_path)  # names a safety checker, which is not here
    assert check_pipeline(tmp_path)[0]["safety_checker"][0] == "stable_diffusion"


def test_every_model_that_a_full_profile_names_is_published_here():
    from rlgenkit.commands.places import find
    from rlgenkit.workbook.parameters import declared

    known = {name.lower() for name in NAMES}
    for name in CASES:
        preset = declared(find(name)).presets["full"]
        for parameter in ("model", "rival"):
            given = str(preset.get(parameter) or "")
            if given.count("/") == 1 and "qwen" not in given.lower():
                assert given.split("/")[1].lower().replace("_", "-") in known, (name, given)
