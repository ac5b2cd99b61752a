"""Potential shaping: rewards that leave the best plans alone."""

from torch import Tensor


def potential_shaping(
    before: Tensor, after: Tensor, discount: float | Tensor, ended: Tensor | None = None
) -> Tensor:
    """Shaping rewards discount * Phi(s') - Phi(s) of transitions (Ng et al. 1999).

    before, after [...]: potentials at both ends of a transition, or their expectations; ended
    Bool[...]: transitions into a terminal state or the cut of an episode, where Phi(s') counts as
    0. Only then is the shaped return the old one minus Phi(first state).
    """
    if ended is not None:
        after = after.masked_fill(ended, 0.0)
    return discount * after - before
