"""04: shares, averages and bytes against brute force and counts by hand."""

import pytest
import torch
from torch import nn

from notebook_code import definitions

found = definitions("04")


def test_shares_are_whole_groups_and_all_rows():
    groups = torch.tensor([2, 0, 2, 1, 0, 5, 1, 2])
    for processes in (1, 2, 3, 6):
        rows = found.shares(groups, processes)
        assert len(rows) == processes
        assert sorted(torch.cat(rows).tolist()) == list(range(8))
        owners = [set(groups[r].tolist()) for r in rows]
        assert all(not a & b for i, a in enumerate(owners) for b in owners[:i])


def test_the_average_is_that_of_one_process():
    terms = torch.randn(11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = terms.split([5, 0, 4, 2])
    sums = torch.stack([part.sum() for part in parts])
    counts = torch.tensor([len(part) for part in parts])
    assert found.average_over_processes(sums, counts).item() == pytest.approx(terms.mean().item())
    means = [p.mean() * found.factor(len(p), counts) for p in parts if len(p)]
    assert sum(means).item() == pytest.approx(terms.mean().item())


def test_all_gradients_travel_in_one_message():
    gradients = [torch.randn(2, 3), torch.randn(4), torch.randn(1, 2, 2)]
    calls = []

    def reduce(vector):
        calls.append(len(vector))
        return vector + 2 * vector

    sums = found.in_one_message(gradients, reduce)
    assert calls == [14]
    for total, one in zip(sums, gradients):
        torch.testing.assert_close(total, 3 * one)


def test_bytes_kept_by_a_network_that_is_counted_by_hand():
    """A layer keeps its input, tanh its output; weights that are frozen need no input."""
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.randn(7, 3)
    kept, output = found.kept_bytes(net.parameters(), lambda: net(x))
    assert output.shape == (7, 2)
    assert kept == 4 * (7 * 3 + 7 * 5)  # tanh's output is the second layer's input: once
    net[0].requires_grad_(False)
    assert found.kept_bytes(net.parameters(), lambda: net(x))[0] == 4 * 7 * 5


@pytest.mark.parametrize("settings", [{"rank": 4}, {"recompute": True}, {}])
def test_two_blocks_tell_the_bytes_of_four(settings):
    network, _, inputs = found.sd3(found.SMALL, 4, 8, 16, rows=3, **settings)
    kept, _ = found.kept_bytes(
        network.parameters(), lambda: network(*inputs(), return_dict=False)[0]
    )
    assert found.predicted(rows=3, **settings) == pytest.approx(kept, rel=0.01)


def test_weights_of_published_sizes():
    """Blocks times their number equal the whole network, weight for weight."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    with torch.device("meta"):
        medium = SD3Transformer2DModel(
            **found.MEDIUM, num_layers=24, dual_attention_layers=tuple(range(13))
        )
        flux = FluxTransformer2DModel(guidance_embeds=True)  # its defaults are FLUX.1-dev's
    two = {"make": found.sd3, "text": 8, "rows": 1, "config": found.MEDIUM, "blocks": 2}
    double = {**two["config"], "dual_attention_layers": (0,)}
    one = {"make": found.flux, "double": 1, "single": 1}
    for network, base, kinds in (
        (medium, two, [(9, {**two, "blocks": 3}), (13, {**two, "blocks": 3, "config": double})]),
        (flux, one, [(18, {**one, "double": 2}), (37, {**one, "single": 2})]),
    ):
        total, adapter = found.extrapolated(found.counted, base, kinds).tolist()
        assert total == sum(w.numel() for w in network.parameters())
        assert adapter == sum(w.numel() for w in found.models.add_lora(network, 32))
