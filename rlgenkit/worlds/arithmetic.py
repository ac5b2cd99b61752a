"""Chains of small sums with an exact verifier: problem, attempt, critique, refinement.

A chain starts at a digit and applies steps +1..+9, -1..-9, *3, *7, *9, all modulo 10. Every step
can be undone, so one slip always spoils the result. An attempt writes the value after each step;
a critique calls each step ok or bad and ends with a verdict, C (right) or W (wrong); a refinement
is a new attempt that obeys the critique. Critiques propose no values: a critic that could would
solve the problem itself, and would need no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = (*(f"+{d}" for d in range(1, 10)), *(f"-{d}" for d in range(1, 10)), "*3", "*7", "*9")
MARKS = ("ok", "bad")
VERDICTS = ("C", "W")
TASKS = ("solve", "critique", "refine")
VOCABULARY = ("<pad>", ".", *TASKS, ":", *map(str, range(10)), *STEPS, *MARKS, *VERDICTS)
PAD, END = 0, 1
_ID = {word: i for i, word in enumerate(VOCABULARY)}
_DO = {"+": lambda v, d: v + d, "-": lambda v, d: v - d, "*": lambda v, d: v * d}
TABLE = torch.tensor([[_DO[s[0]](v, int(s[1])) % 10 for v in range(10)] for s in STEPS])  # [21, 10]

SLIP = 0.12  # chance of a slip per step of the actor's first attempt
HITS = {"+": 0.65, "-": 0.4, "*": 0.2}  # chance that the weak teacher flags a slip in such a step
NINE, FALSE = 0.6, 0.12  # chance that it flags a right step whose value is 9, or any other
CONSISTENT = 0.9  # chance that its verdict agrees with its own flags


@dataclass(frozen=True)
class Chains:
    """B problems of n steps: start Long[B] in 0..9, steps Long[B, n], indices into STEPS."""

    start: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: Tensor | slice) -> Chains:
        return Chains(self.start[rows], self.steps[rows])


def operator_of(steps: Tensor) -> Tensor:
    """0, 1, 2 for +, -, *; any shape."""
    return torch.tensor(["+-*".index(s[0]) for s in STEPS])[steps]


def sample_chains(count: int, length: int, generator: torch.Generator) -> Chains:
    """Random chains; operators are equally likely. ValueError for a length under 1."""
    if length < 1:
        raise ValueError(f"chains of {length} steps cannot be made; ask for more steps")
    operator = torch.randint(3, (count, length), generator=generator)
    operand = torch.rand(count, length, generator=generator)
    size, first = torch.tensor([9, 9, 3])[operator], torch.tensor([0, 9, 18])[operator]
    start = torch.randint(10, (count,), generator=generator)
    return Chains(start, first + (operand * size).long())


def solve(chains: Chains) -> Tensor:
    """The right value after every step, Long[B, n]."""
    return _run(chains, torch.zeros_like(chains.steps))


def attempts(chains: Chains, generator: torch.Generator, slip: float = SLIP) -> Tensor:
    """Values Long[B, n] of a worker that slips to another digit with chance `slip` a step and goes
    on from what it wrote."""
    wrong = torch.rand(chains.steps.shape, generator=generator) < slip
    shift = torch.randint(1, 10, chains.steps.shape, generator=generator)
    return _run(chains, torch.where(wrong, shift, 0))


def _run(chains: Chains, shifts: Tensor) -> Tensor:
    value, values = chains.start, []
    for step, shift in zip(chains.steps.T, shifts.T):
        value = (TABLE[step, value] + shift) % 10
        values.append(value)
    return torch.stack(values, 1)


def expected(chains: Chains, values: Tensor) -> Tensor:
    """What each step would be, given the value written before it: Long[B, n]."""
    before = torch.cat([chains.start[:, None], values[:, :-1]], 1)
    return TABLE[chains.steps, before]


def slips(chains: Chains, values: Tensor) -> Tensor:
    """Bool[B, n]: the steps that do not follow from the value written before them."""
    return values != expected(chains, values)


def is_right(chains: Chains, values: Tensor) -> Tensor:
    """The verifier, Bool[B]: the last value is the right one."""
    return values[:, -1] == solve(chains)[:, -1]


def weak_critiques(
    chains: Chains, values: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(flags Bool[B, n], says_wrong Bool[B]) of a poor teacher: it overlooks most slips that are not
    in additions, distrusts nines, and its verdict does not always follow from its flags."""
    hit = torch.tensor(list(HITS.values()))[operator_of(chains.steps)]
    doubt = torch.where(values == 9, NINE, FALSE)
    chance = torch.where(slips(chains, values), hit, doubt)
    flags = torch.rand(values.shape, generator=generator) < chance
    agree = torch.rand(len(values), generator=generator) < CONSISTENT
    return flags, flags.any(1) == agree


def obey(chains: Chains, values: Tensor, flags: Tensor, says_wrong: Tensor) -> Tensor:
    """The refinement Long[B, n] that an obedient worker writes.

    A verdict "right" leaves everything. After a verdict "wrong", a flagged step is changed: to what
    it should be, or, if there was no slip in it, to one more (the worker believes that it was
    wrong). Steps behind a change are worked out again, all others are copied.
    """
    act, slipped = flags & says_wrong[:, None], slips(chains, values)
    old, new, made = chains.start, chains.start, []
    for k, step in enumerate(chains.steps.T):
        should, same = TABLE[step, new], new == old
        kept = torch.where(same, values[:, k], should)
        changed = torch.where(slipped[:, k], should, (should + 1) % 10)
        old, new = values[:, k], torch.where(act[:, k], changed, kept)
        made.append(new)
    return torch.stack(made, 1)


def critique_ids(flags: Tensor, says_wrong: Tensor) -> Tensor:
    """Token ids Long[B, n+1] of a critique: ok or bad for each step, then the verdict."""
    marks = flags.long() + _ID["ok"]
    return torch.cat([marks, says_wrong.long()[:, None] + _ID["C"]], 1)


def values_ids(values: Tensor) -> Tensor:
    """Token ids of digits, any shape."""
    return values + _ID["0"]


def prompt_ids(
    task: str, chains: Chains, values: Tensor | None = None, critique: Tensor | None = None
) -> Tensor:
    """The prompt Long[B, L] of a task of TASKS: the problem, for "critique" also the attempt
    Long[B, n], for "refine" also the critique's ids Long[B, n+1]; a colon ends each part."""

    def word(name: str) -> Tensor:
        return torch.full((len(chains), 1), _ID[name])

    parts = [word(task), values_ids(chains.start)[:, None], chains.steps + _ID[STEPS[0]], word(":")]
    if values is not None:
        parts += [values_ids(values), word(":")]
    if critique is not None:
        parts += [critique, word(":")]
    return torch.cat(parts, 1)


def read_critiques(ids: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """(flags Bool[B, n], says_wrong Bool[B], readable Bool[B]) of generated ids Long[B, T].

    Readable is exactly one mark for each of the n steps, one verdict and the end; anything else
    (two verdicts, none, a missing mark) is a missing verdict, never a default.
    """
    ids = _at_least(ids, length + 2)
    marks, verdict = ids[:, :length] - _ID["ok"], ids[:, length] - _ID["C"]
    fine = ((marks >= 0) & (marks <= 1)).all(1) & (verdict >= 0) & (verdict <= 1)
    fine &= ids[:, length + 1] == END
    return (marks == 1) & fine[:, None], (verdict == 1) & fine, fine


def _at_least(ids: Tensor, width: int) -> Tensor:
    """Answers that all ended early are shorter: fill up with padding, which reads as nothing."""
    return torch.nn.functional.pad(ids, (0, max(0, width - ids.shape[1])), value=PAD)


def text(ids: Tensor) -> list[str]:
    """Rows of ids Long[B, L] as words, without padding and end."""
    return [" ".join(VOCABULARY[i] for i in row if i not in (PAD, END)) for row in ids.tolist()]
