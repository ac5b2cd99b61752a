"""Train the small language model of arithmetic chains (Llama class): actor and critic in one.

It learns three tasks from text made on the fly: to solve with slips, to criticize, first as an exact
teacher and then as a weak one does, and to refine as an obedient worker does. Nothing is rewarded here.
The weak teacher comes last: the model can tell a slip, but criticizes badly.
"""

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from rlgenkit.worlds import arithmetic as world
from ..recipes import MODELS, at_step, fit, optimizers_for

STEPS, WIDTH, LAYERS, HEADS = 1300, 128, 3, 4
EXACT = 800  # steps with the exact teacher
BATCHES = {"solve": 24, "critique": 128, "refine": 72}  # solving is the easiest to learn
LENGTH = 4  # steps of a chain


def build_tokenizer():
    """A word-level tokenizer: words are divided by blanks, nothing is added."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {word: i for i, word in enumerate(world.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token=".", padding_side="left"
    )


def build():
    """The untrained model, 0.65 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(world.VOCABULARY),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=64,
            pad_token_id=world.PAD,
            eos_token_id=world.END,
            bos_token_id=None,
            tie_word_embeddings=False,
            attention_dropout=0.0,
        )
    )


def examples(
    task: str, batch: int, length: int, generator: torch.Generator, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """(prompts Long[batch, L], answers Long[batch, T], end token included) of one task; exact: the
    critiques mark the slips and nothing else."""
    chains = world.sample_chains(batch, length, generator)
    values = world.attempts(chains, generator)
    end = torch.full((batch, 1), world.END)
    if task == "solve":
        return world.prompt_ids("solve", chains), torch.cat([world.values_ids(values), end], 1)
    values = world.attempts(chains, generator, slip=0.3)  # more slips to learn from
    if task == "critique":
        weak, flags = world.weak_critiques(chains, values, generator), world.slips(chains, values)
        critique = world.critique_ids(*((flags, flags.any(1)) if exact else weak))
        return world.prompt_ids("critique", chains, values), torch.cat([critique, end], 1)
    flags = torch.rand(values.shape, generator=generator) < 0.3
    flags = torch.where(
        torch.rand(batch, 1, generator=generator) < 0.5, world.slips(chains, values), flags
    )
    says_wrong = torch.rand(batch, generator=generator) < 0.8
    refined = world.obey(chains, values, flags, says_wrong)
    prompt = world.prompt_ids("refine", chains, values, world.critique_ids(flags, says_wrong))
    return prompt, torch.cat([world.values_ids(refined), end], 1)


def read_values(ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(values Long[B, n], readable Bool[B]) of generated ids Long[B, T]: readable are exactly n digits
    and the end; the values of other rows are 0."""
    ids = F.pad(ids, (0, max(0, length + 1 - ids.shape[1])), value=world.PAD)
    digits = ids[:, :length] - world.VOCABULARY.index("0")
    fine = ((digits >= 0) & (digits <= 9)).all(1) & (ids[:, length] == world.END)
    return torch.where(fine[:, None], digits, 0), fine


def loss(model, prompts: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    return packed_loss(model, [(prompts, answers)])


def packed_loss(
    model,
    parts: list[tuple[Tensor, Tensor]],
    weights: tuple[float, ...] | None = None,
    read: int | None = None,
) -> Tensor:
    """The weighted mean over parts of their losses, in one forward pass: (prompts Long[b, L], answers
    Long[b, T]) each, filled up on the right, where a causal model does not look.

    read: the part whose prompt holds an attempt that is learned, too, as one more loss of weight 1. So
    the model works out what a step should give while it reads, and can tell where the attempt differs.
    """
    width = max(p.shape[1] + a.shape[1] for p, a in parts)
    ids = [F.pad(torch.cat([p, a], 1), (0, width - p.shape[1] - a.shape[1])) for p, a in parts]
    states = model.model(torch.cat(ids)).last_hidden_state.split([len(p) for p, _ in parts])
    spans = [(k, p.shape[1], p.shape[1] + a.shape[1]) for k, (p, a) in enumerate(parts)]
    weights = weights or (1.0,) * len(parts)
    if read is not None:
        spans, weights = [*spans, (read, LENGTH + 3, 2 * LENGTH + 3)], (*weights, 1.0)
    losses = [
        w
        * F.cross_entropy(
            model.lm_head(states[k][:, i - 1 : j - 1]).flatten(0, 1), ids[k][:, i:j].flatten()
        )
        for w, (k, i, j) in zip(weights, spans)
    ]
    return sum(losses) / sum(weights)


def loss_at(model, step: int, device: str = "cpu") -> Tensor:
    """The loss of one training step; criticizing, the hardest task, counts double."""
    generator = at_step(71, step)
    parts = [
        examples(task, batch, LENGTH, generator, step < EXACT) for task, batch in BATCHES.items()
    ]
    return packed_loss(
        model, [(p.to(device), a.to(device)) for p, a in parts], (1.0, 2.0, 1.0), read=1
    )


@torch.no_grad()
def quality(model, count: int = 2000, length: int = LENGTH) -> dict[str, float]:
    """Shares measured on new chains, greedy except for the first attempt."""
    from rlgenkit.models.tokens import generate

    generator = torch.Generator().manual_seed(7_000_001)
    chains = world.sample_chains(count, length, generator)

    def write(prompts: Tensor, new: int, temperature: float) -> Tensor:
        return generate(
            model, prompts, new, generator, temperature, world.END, world.PAD, score=False
        ).answers

    first, fine = read_values(write(world.prompt_ids("solve", chains), length + 1, 1.0), length)
    right = world.is_right(chains, first) & fine
    sure, _ = read_values(write(world.prompt_ids("solve", chains), length + 1, 0.0), length)
    ids = write(world.prompt_ids("critique", chains, first), length + 2, 0.0)
    _, says_wrong, readable = world.read_critiques(ids, length)
    flags = world.slips(chains, first)
    prompt = world.prompt_ids("refine", chains, first, world.critique_ids(flags, ~right))
    oracle, _ = read_values(write(prompt, length + 1, 0.0), length)
    noisy = torch.rand(flags.shape, generator=generator) < 0.3
    prompt = world.prompt_ids("refine", chains, first, world.critique_ids(noisy, ~right))
    obeyed, _ = read_values(write(prompt, length + 1, 0.0), length)
    shares = {
        "first attempt right": right,
        "greedy attempt right": world.is_right(chains, sure),
        "verdict right": readable & (says_wrong != right),
        "verdict right, right attempts": (readable & ~says_wrong)[right],
        "verdict right, wrong attempts": (readable & says_wrong)[~right],
        "critique readable": readable,
        "right after a perfect critique": world.is_right(chains, oracle),
        "obeys any critique": (obeyed == world.obey(chains, first, noisy, ~right)).all(1),
    }
    return {name: round(share.float().mean().item(), 3) for name, share in shares.items()}


def main(steps: int = STEPS, device: str = "cpu") -> None:
    """Train and save data/models/arithmetic: LlamaForCausalLM, tokenizer, quality.json."""
    torch.manual_seed(
        0
    )  # weight initialization inside transformers draws from the global generator
    model = build().to(device)
    optimizers = optimizers_for(model, 0.02, 2e-3, ("model",))
    seconds = fit(
        "arithmetic",
        model,
        optimizers,
        steps,
        lambda step: loss_at(model, step, device),
        ema=0.99,
        every=50,
    )
    model.to("cpu").eval()
    folder = MODELS / "arithmetic"
    model.half().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    record = {"seconds": round(seconds, 1), "quality": {"4 steps": quality(model.float())}}
    (folder / "quality.json").write_text(json.dumps(record, indent=1) + "\n")
    print(record)


if __name__ == "__main__":
    main()
