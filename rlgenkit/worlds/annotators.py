"""Simulated annotators: people whose noise, bias, taste and intransitivity are known exactly.

An annotator turns true utilities (of any origin) into votes; every knob is an argument, so that a
notebook can ask what happens to a method when raters are noisy, biased, of two minds, or cyclic.
"""

import torch
from torch import Tensor


TASTES = {  # weights on LOOKS: what a rater of this taste enjoys
    "balanced": (1.0, 1.0, 1.0, 1.0, -1.0),
    "vivid": (0.5, 3.0, 0.0, 0.0, 0.5),
    "minimal": (0.5, -1.0, 0.5, 1.0, -3.0),
    "orderly": (0.0, 0.0, 2.0, 3.0, -0.5),
}


def taste(name: str) -> Tensor:
    """Weights [5] on LOOKS of a named taste: "balanced" | "vivid" | "minimal" | "orderly"."""
    if name not in TASTES:
        raise ValueError(f"unknown taste {name!r}; choose one of {', '.join(TASTES)}")
    return torch.tensor(TASTES[name])


def preference_probability(
    first: Tensor, second: Tensor, temperature: float = 1.0, flip: float = 0.0
) -> Tensor:
    """P(first is preferred) [B] from utilities [B]: Bradley-Terry with a share `flip` of random slips.

    p = (1 - 2 flip) sigmoid((u1 - u2) / temperature) + flip; temperature 0 is a noiseless rater whose
    ties are even.
    """
    if temperature < 0 or not 0 <= flip <= 0.5:
        raise ValueError(
            f"temperature must be >= 0 and flip in [0, 0.5], not {temperature} and {flip}"
        )
    gap = first - second
    clear = gap.sign() / 2 + 0.5 if temperature == 0 else torch.sigmoid(gap / temperature)
    return (1 - 2 * flip) * clear + flip


def prefer(
    first: Tensor,
    second: Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    flip: float = 0.0,
    side_bias: float = 0.0,
) -> Tensor:
    """Votes [B], True where the first is chosen; side_bias in utility units favors the first place."""
    chance = preference_probability(first + side_bias, second, temperature, flip)
    return torch.rand(chance.shape, generator=generator) < chance


def rate(
    utility: Tensor,
    generator: torch.Generator,
    levels: int = 5,
    noise: float = 0.3,
    leniency: float = 0.0,
    edges: Tensor | None = None,
) -> Tensor:
    """Likert ratings [B] in 1..levels: utility + leniency + Gaussian noise, cut at `edges` [levels - 1].

    edges None cuts at evenly spaced quantiles of the given utilities (a rater who uses the whole scale).
    """
    if edges is None:
        edges = torch.quantile(utility.float(), torch.arange(1, levels) / levels)
    felt = utility + leniency + noise * torch.randn(utility.shape, generator=generator)
    return torch.bucketize(felt, edges) + 1


def cyclic_probability(first: Tensor, second: Tensor, strength: float = 0.9) -> Tensor:
    """P(first preferred) [B] of an intransitive rater over three types, given as indices 0, 1, 2.

    Type 0 beats 1, 1 beats 2, 2 beats 0, each with probability `strength`: no utility explains it, so
    any scalar reward model is exploitable here.
    """
    step = (second - first) % 3
    table = torch.tensor([0.5, strength, 1 - strength])
    return table[step]
