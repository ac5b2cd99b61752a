"""AttriCtrl (notebook 40): ranks, sinusoid, tokens, encoder, exam and leakage against oracles."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from data.models.epsilon.train import build_network
from rlgenkit import models, samplers
from rlgenkit.models.conditioning import Conditioning
from tests.notebook_code import definitions

nb = definitions("40")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_normalized_ranks_are_those_of_scipy_and_ties_share():
    assert nb.normalized_ranks(torch.tensor([3.0, 1, 2])).tolist() == pytest.approx(
        [5 / 6, 1 / 6, 1 / 2]
    )
    scores = torch.randn(50, generator=generator()).round(decimals=1)
    assert len(scores.unique()) < 50
    theirs = (rankdata(scores.numpy()) - 0.5) / 50
    assert np.allclose(nb.normalized_ranks(scores), theirs)


def test_scale_gives_training_values_back_interpolates_and_stays_in_range():
    raw = torch.tensor([3.0, 1.0, 2.0, 2.0])
    scale = nb.new_scale(raw)
    assert torch.allclose(scale.place(raw), nb.normalized_ranks(raw))
    assert scale.place(torch.tensor([1.5, -9.0, 9.0])).tolist() == pytest.approx(
        [(1 / 8 + 1 / 2) / 2, 1 / 8, 7 / 8]
    )
    for value in (0.2, 0.5, 0.8):
        back = scale.place(torch.tensor([scale.score(value)], dtype=torch.float64))
        assert back.item() == pytest.approx(value, abs=1e-6)


def test_sinusoid_is_that_of_diffusers_and_the_factor_opens_its_eyes():
    from diffusers.models.embeddings import get_timestep_embedding

    values = torch.rand(20, generator=generator())
    theirs = get_timestep_embedding(
        1000 * values, 256, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    assert torch.allclose(nb.sinusoid(values, 1000.0), theirs, atol=2e-3)
    zero = nb.sinusoid(torch.zeros(1), 1000.0)[0]
    assert (zero[:128] == 1).all() and (zero[128:] == 0).all()
    five = torch.linspace(0, 1, 5)
    for factor, least, most in ((1.0, 1, 4), (1000.0, 5, 5)):
        sizes = torch.linalg.svdvals(nb.sinusoid(five, factor))
        assert least <= (sizes > 0.01 * sizes[0]).sum() <= most


def test_pixel_measurements_by_hand():
    gray = torch.full((1, 3, 16, 16), 100 / 255)
    assert nb.hsv(gray).item() == pytest.approx(100 / 255)
    assert nb.detail(gray).item() == pytest.approx(0, abs=1e-6)
    ramp = (torch.arange(256) / 255).view(1, 1, 16, 16).expand(-1, 3, -1, -1)
    assert nb.detail(ramp).item() == pytest.approx(math.log(256), abs=1e-4)
    red = torch.tensor([0.8, 0.2, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert nb.hsv(red).item() == pytest.approx(0.8)


def small_network():
    torch.manual_seed(0)
    return build_network().requires_grad_(False).eval()


def prompts():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    return Conditioning(torch.randn(2, 4, 128, generator=generator(1)), mask)


def call(network, words, seed=2):
    """Prediction of the network for two prompts, as the denoiser of the kit makes it."""
    x = torch.randn(2, 8, 8, 8, generator=generator(seed))
    mask = ((1 - words.mask.float()) * -10000.0).unsqueeze(1)
    size = {"resolution": None, "aspect_ratio": None}
    return network(
        x, encoder_hidden_states=words.tokens, encoder_attention_mask=mask,
        timestep=torch.full((2,), 500), added_cond_kwargs=size,
    ).sample  # fmt: skip


def test_tokens_stand_behind_the_caption_and_masked_ones_change_nothing():
    words, tokens = prompts(), torch.randn(2, 3, 128, generator=generator(3))
    longer = nb.told(words, tokens)
    assert torch.equal(longer.tokens[:, :4], words.tokens)
    assert torch.equal(longer.tokens[:, 4:], tokens)
    assert longer.mask.tolist() == [[1, 1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1]]
    assert nb.told(words, None) is words
    assert torch.equal(nb.told(words, tokens, None).tokens, longer.tokens)
    network = small_network()
    with torch.no_grad():
        alone, seen = call(network, words), call(network, longer)
        hidden = call(network, replace(longer, mask=longer.mask * (torch.arange(7) < 4)))
        zeros = call(network, nb.told(words, torch.zeros_like(tokens)))
    assert torch.allclose(alone, hidden, atol=1e-5)
    assert (alone - seen).abs().max() > 1e-4
    assert (alone - zeros).abs().max() > 1e-6  # even zeros take their share of the attention


def test_a_model_without_masks_gets_the_tokens_alone():
    words = Conditioning(torch.zeros(2, 4, 128))
    longer = nb.told(words, torch.ones(2, 3, 128))
    assert longer.mask is None and longer.tokens.shape == (2, 7, 128)


def test_only_the_encoder_gets_gradients_and_the_model_stays():
    network, encoder = small_network(), nb.ValueEncoder(128, 3, 1000.0, generator(4))
    before = [weight.clone() for weight in network.parameters()]
    tokens = encoder(torch.tensor([0.2, 0.7]))
    assert tokens.shape == (2, 3, 128)
    optimizer = torch.optim.AdamW(encoder.parameters(), 1e-2)
    call(network, nb.told(prompts(), tokens)).square().mean().backward()
    optimizer.step()
    assert all(weight.grad is not None for weight in encoder.parameters())
    assert encoder.places.grad.abs().sum() > 0 and encoder.first.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in network.parameters())
    assert all(map(torch.equal, before, network.parameters()))


def test_encoder_is_the_formula():
    encoder = nb.ValueEncoder(8, 2, 1000.0, generator(5))
    value = torch.tensor([0.37])
    wave = nb.sinusoid(value, 1000.0)[0]
    hidden = encoder.first.weight @ wave + encoder.first.bias
    one = encoder.second.weight @ (hidden * torch.sigmoid(hidden)) + encoder.second.bias
    assert torch.allclose(encoder(value)[0], one + encoder.places, atol=1e-5)
    again = nb.ValueEncoder(8, 2, 1000.0, generator(5))
    assert all(map(torch.equal, encoder.parameters(), again.parameters()))


def test_taught_words_are_two_blocks():
    known = torch.randn(8, generator=generator(10))
    words = nb.TaughtWords(known, 3, generator(6))
    assert 0 < (words.blocks - known).norm(dim=2).max() < known.norm()
    made = words(torch.tensor([0.1, 0.9, 0.2]))
    assert torch.equal(made[0], words.blocks[0]) and torch.equal(made[1], words.blocks[1])
    assert torch.equal(made[2], made[0])


def test_mean_token_leaves_out_what_the_mask_hides():
    words = prompts()
    seen = torch.cat([words.tokens[0, :3], words.tokens[1, :2]])
    assert torch.allclose(nb.mean_token(words), seen.mean(0), atol=1e-6)
    bare = Conditioning(words.tokens)
    assert torch.allclose(nb.mean_token(bare), words.tokens.mean((0, 1)), atol=1e-6)


def test_mixed_prompts_and_rivals():
    words, captions = nb.TaughtWords(torch.randn(128), 2, generator(7)), prompts()
    speak = nb.rivals_of(words, captions)
    low, high = words.blocks.detach()
    assert torch.allclose(speak["interpolated"](0.0).tokens[0, 4:], low)
    assert torch.allclose(speak["interpolated"](1.0).tokens[1, 4:], high)
    assert torch.allclose(speak["interpolated"](0.25).tokens[0, 4:], 0.75 * low + 0.25 * high)
    assert torch.allclose(speak["scaled word"](0.3).tokens[0, 4:], 0.3 * high)
    for a in (0.0, 0.3, 1.0):
        assert torch.allclose(speak["interpolated"](a).tokens[:, :4], captions.tokens)
    assert [speak["wording"](a).tokens.shape[1] for a in (0.1, 0.3, 0.5, 0.7, 0.9)] == [
        8, 6, 4, 6, 8,
    ]  # fmt: skip


def test_rank_correlation_is_that_of_scipy():
    asked, value = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]), torch.rand(5, 6, generator=generator())
    value[1, 0] = value[2, 0]
    value[:, 5] = 0.4
    found = nb.by_order(asked, value)
    for k in range(5):
        assert found[k].item() == pytest.approx(spearmanr(asked, value[:, k]).statistic, abs=1e-5)
    assert found[5] == 0
    exact = {"value": asked[:, None].expand(5, 3)}
    assert nb.error_of(exact) == 0 and nb.order_of(exact) == pytest.approx(1)
    off = {"value": torch.full((5, 2), 0.5)}
    assert nb.error_of(off) == pytest.approx(0.24) and nb.error_of(off, [0, 4]) == pytest.approx(
        0.4
    )


def test_slopes_are_exact_on_a_linear_world():
    asked = torch.rand(30, 2, generator=generator(8), dtype=torch.float64)
    truth = torch.tensor([[0.8, 0.3], [-0.1, 0.6]], dtype=torch.float64)
    assert torch.allclose(nb.slopes(asked, 0.2 + asked @ truth.T), truth.float())


def test_margin_of_the_leakage_matrix_by_hand():
    m = torch.tensor([[[0.9, -0.2], [0.1, 0.8]]])
    assert nb.margin(m).tolist() == pytest.approx([0.8 - 0.6])


def test_half_noise_of_the_worked_example():
    """Equal shares of signal and noise, and the noise as target."""
    clean, noise = torch.randn(2, 2, 1, 3, 3, generator=generator(9))
    noisy, target = samplers.noised_diffusion(clean, noise, torch.tensor([0.5] * 2))
    assert torch.allclose(noisy, (clean + noise) / math.sqrt(2)) and torch.equal(target, noise)


def test_the_kit_tells_the_network_what_is_appended():
    """The denoiser of the kit with value tokens is the bare network with them."""
    network = small_network()
    policy = SimpleNamespace(
        network=network, pipeline="PixArtAlphaPipeline", latent_shape=(8, 8, 8), autocast=None,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    longer = nb.told(prompts(), torch.randn(2, 3, 128, generator=generator(3)))
    x = torch.randn(2, 8, 8, 8, generator=generator(2))
    with torch.no_grad():
        kit = models.denoiser(policy, longer)(x, torch.full((2,), 500))
        assert torch.allclose(kit, call(network, longer)[:, :8], atol=1e-5)


class Silent:
    """Stands in for a run: no files, no checkpoints."""

    def steps(self, n, name, state=None):
        return range(n)

    def log(self, step, samples=None, **values):
        pass


def set_names(monkeypatch, **names):
    """Give the notebook's functions what only a run has."""
    for name, value in names.items():
        monkeypatch.setitem(nb.train.__globals__, name, value)


DIRECTION = torch.tensor([1.0, -1.0, 0.5, 0.0]).view(4, 1, 1)


def toy_world(monkeypatch, seen):
    """A denoiser that answers with the mean token, pictures that are value x direction.

    seen: list that takes (captions, pictures' values) of every batch.
    """
    values = torch.linspace(0, 1, 40)
    captions = torch.arange(40)

    def denoiser(base, words, guidance):
        seen.append(words.tokens[:, 0, 0].clone())
        return lambda noisy, t: words.tokens[:, 1:].mean(1)[:, :, None, None]

    def task(clean, generator):
        seen.append(clean[:, 0, 0, 0].clone())
        return clean, torch.zeros(len(clean)), clean

    tokens = captions[:, None, None].expand(-1, 1, 4).float()
    set_names(
        monkeypatch, run=Silent(), base=SimpleNamespace(device=torch.device("cpu")),
        models=SimpleNamespace(denoiser=denoiser), task=task, told_lessons=Conditioning(tokens),
        p=SimpleNamespace(updates=300, batch=8, lr=3e-2, guidance=1.0),
        album=SimpleNamespace(caption=captions, latents=values.view(-1, 1, 1, 1) * DIRECTION),
    )  # fmt: skip
    return values


def test_training_makes_tokens_that_denoise_and_depend_on_the_value(monkeypatch):
    seen = []
    values = toy_world(monkeypatch, seen)
    encoder = nb.ValueEncoder(4, 2, 1.0, generator(1))
    assert nb.train("toy", 0, encoder, torch.arange(40), values) is encoder
    made = encoder(torch.tensor([0.2, 0.8])).mean(1).detach()
    wanted = torch.tensor([0.2, 0.8])[:, None] * DIRECTION.view(1, 4)
    assert torch.allclose(made, wanted, atol=0.05)  # not its negative, and not one constant


def test_training_rows_keep_picture_caption_and_value_together(monkeypatch):
    """Of pictures 30 to 39 in turned order: caption k, latent of k, value of k meet."""
    seen, told_values = [], []
    values = toy_world(monkeypatch, seen)
    rows = torch.arange(39, 29, -1)

    class Recorder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = torch.nn.Parameter(torch.zeros(2, 4))

        def forward(self, some):
            told_values.append(some.clone())
            return self.block.expand(len(some), -1, -1)

    monkeypatch.setattr(nb.train.__globals__["p"], "updates", 5)
    nb.train("toy", 0, Recorder(), rows, values[rows])
    for clean, captions, some in zip(seen[::2], seen[1::2], told_values, strict=True):
        assert torch.equal(values[captions.long()], some) and torch.equal(clean, some)
        assert ((captions >= 30) & (captions <= 39)).all()


def test_rate_falls_to_zero_and_words_have_their_own(monkeypatch):
    values = toy_world(monkeypatch, [])
    rates = []

    class Optimizer:
        param_groups = ({"lr": None},)

        def zero_grad(self):
            pass

        def step(self):
            rates.append(self.param_groups[0]["lr"])

    def make_optimizer(parameters, lr, weight_decay):
        assert weight_decay == 0
        return Optimizer()

    set_names(monkeypatch, optimizers=SimpleNamespace(make_optimizer=make_optimizer))
    monkeypatch.setattr(nb.train.__globals__["p"], "updates", 4)
    encoder = nb.ValueEncoder(4, 2, 1.0, generator(1))
    nb.train("toy", 0, encoder, torch.arange(40), values)
    assert rates == pytest.approx([3e-2 * f for f in (1, 0.75, 0.5, 0.25)])
    nb.train("toy", 0, encoder, torch.arange(40), values, lr=1.0)
    assert rates[4:] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_drawn_times_make_errors_of_the_noise_those_of_the_velocity(monkeypatch):
    """By enumeration: the mean over drawn times is the mean velocity error of even times."""
    levels = torch.linspace(0.999, 0.01, 1000)
    base = SimpleNamespace(
        scheduler=SimpleNamespace(alphas_cumprod=levels), prediction="epsilon",
        device=torch.device("cpu"),
    )  # fmt: skip
    set_names(monkeypatch, base=base, FLOW=False)
    clean, noise, wrong = torch.randn(3, 1000, 2, 3, 3, generator=generator(3))
    noisy, target = samplers.noised_diffusion(clean, noise, levels, "epsilon")
    wrong = target + wrong * torch.linspace(0.1, 1, 1000).view(-1, 1, 1, 1)
    level = levels.view(-1, 1, 1, 1)

    def velocity(noise):
        clean = (noisy - (1 - level).sqrt() * noise) / level.sqrt()
        return level.sqrt() * noise - (1 - level).sqrt() * clean

    errors = (velocity(wrong) - velocity(target)).square().mean((1, 2, 3))
    by_chance = (nb.chances_of(levels) * (wrong - target).square().mean((1, 2, 3))).sum()
    assert by_chance.item() == pytest.approx((errors.mean() / (1 / levels).mean()).item(), rel=1e-3)
    some = clean[:1].expand(20_000, -1, -1, -1)
    _, t, _ = nb.task(some, generator(4))
    late = nb.chances_of(levels)[900:].sum().item()
    assert 0.3 < late < 0.6 and (t >= 900).float().mean().item() == pytest.approx(late, abs=0.015)
    base.prediction = "v"
    _, t, _ = nb.task(some, generator(4))
    assert (t >= 900).float().mean().item() == pytest.approx(0.1, abs=0.01)


NOBODY = SimpleNamespace(text="nobody")


def test_guidance_enlarges_what_is_asked_and_nothing_else(monkeypatch):
    """Prediction without + strength x (with - without); strength 1 or no plain words: untouched."""

    def denoiser(base, words, guidance):
        return lambda noisy, time: noisy + words.tokens[:, :, 0].sum(1) * time

    asked, plain = (
        Conditioning(torch.tensor([[[2.0], [5.0]]])),
        Conditioning(torch.tensor([[[2.0]]])),
    )
    for strength, other, expected in ((3.0, plain, 1 + 17.0), (1.0, plain, 8.0), (3.0, None, 8.0)):
        set_names(
            monkeypatch, models=SimpleNamespace(denoiser=denoiser), base=None,
            p=SimpleNamespace(strength=strength, guidance=1.0),
        )  # fmt: skip
        predict = nb.pressed(asked, other)
        assert predict(torch.ones(1), torch.ones(1)).item() == pytest.approx(expected)


def fake_pictures(monkeypatch):
    """Words hold a number, pictures are gray of that number squared, and so are values."""
    same = SimpleNamespace(place=lambda raw: raw)
    set_names(
        monkeypatch, paint=lambda words, noise, plain: words.tokens[:, 0, 0].square(),
        MEASURES={"gray": lambda pictures: pictures}, SCALES={"gray": same},
        noise_for=lambda count, seed: torch.zeros(count), lessons=[NOBODY] * 12,
        told_lessons=Conditioning(torch.zeros(12, 1, 1)), base=None,
        models=SimpleNamespace(embed=lambda base, texts: Conditioning(torch.zeros(len(texts), 1, 1))),
        seen_in=lambda pictures, prompts: (pictures > 0.2, pictures[:, None]),
    )  # fmt: skip


def say(count, sign=1.0):
    """A speaker of `count` prompts whose words are the number that is asked."""
    return lambda a: Conditioning(torch.full((count, 1, 1), sign * float(a)))


def test_exam_asks_all_targets_and_measures(monkeypatch):
    fake_pictures(monkeypatch)
    found = nb.examine("gray", 0, say(3), [NOBODY] * 3)
    squares = torch.tensor([0.01, 0.09, 0.25, 0.49, 0.81])
    assert torch.allclose(found["value"], squares[:, None].expand(5, 3))
    assert found["there"].tolist() == [[False] * 3] * 2 + [[True] * 3] * 3
    assert nb.error_of(found) == pytest.approx((0.09 + 0.21 + 0.25 + 0.21 + 0.09) / 5)
    low = nb.examine("gray", 0, say(3), [NOBODY] * 3, nb.TARGETS[:2])
    assert low["value"].shape == (2, 3)
    assert nb.error_of(low, slice(0, 2)) == pytest.approx(0.15)
    assert nb.error_of(found, slice(0, 2)) == pytest.approx(0.15)


def test_calibrated_interpolation_finds_the_weight_on_lessons_and_says_it_in_the_exam(monkeypatch):
    fake_pictures(monkeypatch)
    speak = nb.calibrated(say(12), say(3, sign=-1.0), "gray", 0)
    for target in (0.04, 0.36, 0.64):
        words = speak(target)
        assert len(words.tokens) == 3  # captions of the exam
        assert words.tokens[0].item() == pytest.approx(-math.sqrt(target), abs=1e-4)


def test_best_background_name_for_each_target(monkeypatch):
    fake_pictures(monkeypatch)
    known = {"white": 1.0, "sand": 0.5, "sky": 0.0}
    asked = []

    def with_name(name, start, count):
        asked.append((name, start, count))
        return Conditioning(torch.full((count, 1, 1), known[name]))

    worlds = SimpleNamespace(BACKGROUNDS=tuple(known))
    set_names(monkeypatch, worlds=worlds, with_name=with_name, p=SimpleNamespace(prompts=3))
    speak = nb.own_words("gray", 0)
    assert {start for _, start, _ in asked} == {3}  # tuned on lessons, which follow the exam
    said = [speak(a).tokens[0].item() for a in (0.1, 0.3, 0.9)]
    assert said == [0.0, 0.5, 1.0] and asked[-1] == ("white", 0, 3)


def test_raw_speaker_says_the_scaled_raw_score(monkeypatch):
    scale = nb.new_scale(torch.tensor([10.0, 20.0, 40.0, 90.0]))
    said = []

    def speaker(encoder, captions):
        return said.append

    set_names(
        monkeypatch, SCALES={"brightness": scale}, speaker=speaker, told_exam=None, LOWEST=10.0,
        RANGE=80.0,
    )  # fmt: skip
    speak = nb.raw_speaker(None)
    for target in (1 / 8, 3 / 8, 7 / 8):
        speak(target)
    assert said == pytest.approx([0, 1 / 8, 1])


def test_sham_learns_from_the_same_values_on_other_pictures(monkeypatch):
    values, learned = torch.linspace(0, 1, 30), []

    def train(name, seed, encoder, rows, values, probe=None):
        learned.append((rows, values))

    set_names(
        monkeypatch, train=train, new_encoder=lambda seed: None, p=SimpleNamespace(pictures=30),
        EVERYTHING=torch.arange(30), VALUES={"detail": values},
    )  # fmt: skip
    nb.new_arm("detail", 1)
    nb.sham_arm("detail", 1)
    (rows, right), (same_rows, shuffled) = learned
    assert torch.equal(rows, same_rows) and torch.equal(right, values)
    assert torch.equal(shuffled.sort().values, values)
    assert abs(np.corrcoef(shuffled, values)[0, 1]) < 0.5 and (shuffled == values).sum() < 5


def test_ends_arm_keeps_the_values_of_its_pictures(monkeypatch):
    values, learned = torch.linspace(0.01, 0.99, 99), []

    def train(name, seed, encoder, rows, told_values):
        learned.append((rows, told_values))

    set_names(monkeypatch, train=train, new_encoder=lambda s: None, VALUES={"brightness": values})
    nb.ends_arm(0)
    ((rows, told_values),) = learned
    assert torch.equal(values[rows], told_values)
    assert ((told_values < 0.1) | (told_values > 0.9)).all() and len(rows) in (18, 19, 20)


def test_two_encoders_at_once_are_measured_each_by_its_own(monkeypatch):
    """Encoders say their value, pictures are what is said: all errors 0, slopes the identity."""

    def encoder(values):
        return values[:, None, None]

    pictures = {"first": lambda x: x[:, 0], "second": lambda x: x[:, -1]}
    same = SimpleNamespace(place=lambda raw: raw)
    set_names(
        monkeypatch, told_exam=Conditioning(torch.zeros(3, 1, 1)), MEASURES=pictures,
        SCALES={"first": same, "second": same}, p=SimpleNamespace(prompts=3),
        noise_for=lambda count, seed: None,
        paint=lambda words, noise, plain: words.tokens[:, 1:, 0],
    )  # fmt: skip
    one = nb.together((encoder, encoder), ("first", "second"), 0)
    assert one["asked"].shape == (27, 2) and torch.equal(one["asked"], one["found"])
    assert torch.allclose(one["alone"], torch.zeros(2))
    assert torch.allclose(nb.slopes(one["asked"], one["found"]), torch.eye(2), atol=1e-5)


def test_loss_on_fresh_pictures_takes_every_picture_with_its_value(monkeypatch):
    """A model that is told the pictures' values has no loss; told those of others it has."""
    values = torch.linspace(0, 1, 7)
    latents = values.view(-1, 1, 1, 1) * DIRECTION

    def denoiser(base, words, guidance):
        return lambda noisy, t: words.tokens[:, 1:].mean(1)[:, :, None, None]

    set_names(
        monkeypatch, base=SimpleNamespace(device=torch.device("cpu")),
        models=SimpleNamespace(denoiser=denoiser), p=SimpleNamespace(chunk=3, guidance=1.0),
        task=lambda clean, generator: (clean, torch.zeros(7), clean),
        FRESH=SimpleNamespace(latents=latents, caption=torch.arange(7), raw={"gray": values}),
        told_lessons=Conditioning(torch.zeros(7, 1, 4)),
        SCALES={"gray": SimpleNamespace(place=lambda raw: raw)},
    )  # fmt: skip

    def knowing(some):
        return (some[:, None] * DIRECTION.view(1, 4))[:, None]

    assert nb.fresh_loss(knowing, values, 0) == pytest.approx(0, abs=1e-9)
    wrong = ((values.roll(1) - values)[:, None] * DIRECTION.view(1, 4)).square().mean().item()
    assert nb.fresh_loss(knowing, values.roll(1), 0) == pytest.approx(wrong, rel=1e-5)
    assert nb.saved(knowing, "gray", 0) == pytest.approx(1)


def test_errors_that_backgrounds_alone_would_have(monkeypatch):
    """Five backgrounds with two pictures each; at 0.5 one of them is as near as it gets."""
    values = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.48, 0.52, 0.5, 0.9, 0.7, 1.0])
    wall = torch.arange(5).repeat_interleave(2)
    set_names(monkeypatch, VALUES={"gray": values}, TARGETS=(0.5,))
    best, occur = nb.two_errors("gray", wall)
    near = [0.02, 0.02, 0.2]  # 0.48 and 0.52 have the third background, 0.5 has the fourth
    assert best == pytest.approx(0.02) and occur == pytest.approx(np.mean(near))
