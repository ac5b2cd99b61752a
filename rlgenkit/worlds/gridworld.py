"""Tabular worlds: boards with cells of known worth, exact planning, and short segments of play.

The delivery board, its features and weights are those of Knox et al. 2022 (arXiv 2206.02231).
Everything is exact, in float64, and batched over R reward functions or policies; S cells, A = 4
moves, F features.
"""

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from .human import checked_bytes

FEATURES = ("gas", "goal", "sheep", "coin", "road block", "mud")
DELIVERY_WEIGHTS = (-1.0, 50.0, -50.0, 1.0, -1.0, -2.0)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right in (row, column)
DISCOUNT = 0.999
BLANK, GOAL, HOUSE, SHEEP, COIN, BLOCK, MUD = range(7)
MUD_GOAL, MUD_COIN = 7, 10
CELL_FEATURES = {  # what entering a cell brings; the ends of an episode cost no gas
    BLANK: ("gas",),
    GOAL: ("goal",),
    HOUSE: (),
    SHEEP: ("sheep",),
    COIN: ("gas", "coin"),
    BLOCK: ("gas", "road block"),
    MUD: ("mud",),
    MUD_GOAL: ("goal",),
    MUD_COIN: ("mud", "coin"),
}
ENDS = (GOAL, SHEEP, MUD_GOAL)
DELIVERY = """
    0 0 5 0 0 0 0 0 0 0
    0 0 0 0 4 0 0 0 0 6
    0 0 3 0 0 0 0 6 6 6
    4 0 5 0 2 3 3 6 6 0
    6 6 0 0 0 0 0 0 0 0
    6 0 4 0 0 0 0 0 0 0
    6 2 0 3 5 2 0 0 0 0
    0 4 0 0 0 0 0 10 6 6
    0 0 5 0 0 0 0 6 6 7
    0 0 0 0 0 0 5 0 0 4"""


@dataclass(frozen=True)
class Gridworld:
    """A tabular world of S = H W cells, row by row.

    cells Long[H, W] codes; transitions [S, A, S]; features [S, A, F], what a move brings on
    average; starts Bool[S]. Ends and houses lead to themselves and bring nothing.
    """

    cells: Tensor
    transitions: Tensor
    features: Tensor
    starts: Tensor


@dataclass(frozen=True)
class Segments:
    """N short stretches of play: states Long[N, L + 1], actions Long[N, L]."""

    states: Tensor
    actions: Tensor


@dataclass(frozen=True)
class SegmentLabels:
    """Pairs of segments and votes [N] in 0..1: 1 = the first is preferred, 0.5 = a tie."""

    first: Segments
    second: Segments
    votes: Tensor


def make_board(cells: Tensor) -> Gridworld:
    """A board from codes Long[H, W] (keys of CELL_FEATURES), with deterministic moves.

    Walls and houses stop a move, which then costs the gas or mud of the cell it stays on.
    """
    unknown = set(cells.flatten().tolist()) - set(CELL_FEATURES)
    if cells.ndim != 2 or unknown:
        raise ValueError(
            f"cells must be [H, W] codes out of {sorted(CELL_FEATURES)}, not "
            f"{list(cells.shape)} with {sorted(unknown)}"
        )
    height, width = cells.shape
    gains = torch.tensor(
        [[float(name in CELL_FEATURES[int(c)]) for name in FEATURES] for c in cells.flatten()],
        dtype=torch.float64,
    )
    stay = torch.tensor([name in ("gas", "mud") for name in FEATURES])
    transitions = torch.zeros(cells.numel(), len(MOVES), cells.numel(), dtype=torch.float64)
    features = torch.zeros(cells.numel(), len(MOVES), len(FEATURES), dtype=torch.float64)
    free = ~torch.isin(cells.flatten(), torch.tensor([HOUSE, *ENDS]))
    for s in range(cells.numel()):
        for a, (down, right) in enumerate(MOVES):
            row, column = s // width + down, s % width + right
            inside = 0 <= row < height and 0 <= column < width
            moves = bool(free[s]) and inside and int(cells[row, column]) != HOUSE
            after = row * width + column if moves else s
            transitions[s, a, after] = 1.0
            if free[s]:
                features[s, a] = gains[after] if moves else gains[s] * stay
    return Gridworld(cells, transitions, features, free)


def delivery_board() -> Gridworld:
    """The 10 x 10 delivery board with 92 start cells; its true weights are DELIVERY_WEIGHTS."""
    rows = [[int(code) for code in row.split()] for row in DELIVERY.split("\n") if row.strip()]
    return make_board(torch.tensor(rows))


def random_board(generator: torch.Generator, side: int = 10) -> Gridworld:
    """A board of its own with one goal that can be reached from every start; same cell codes."""
    shares = torch.tensor([0.68, 0, 0.04, 0.05, 0.05, 0.06, 0.12])  # BLANK .. MUD
    for _ in range(100):
        cells = torch.multinomial(shares, side * side, True, generator=generator)
        cells[int(torch.randint(side * side, (), generator=generator))] = GOAL
        world = make_board(cells.view(side, side))
        reach = (cells == GOAL).double()
        for _ in range(side * side):
            reach = torch.maximum(reach, (world.transitions @ reach).amax(1))
        if world.starts.sum() > 1 and bool((reach[world.starts] > 0).all()):
            return world
    raise ValueError(f"no board of side {side} with a reachable goal was found; take side >= 3")


def policy_values(
    world: Gridworld, policy: Tensor, rewards: Tensor, discount: float = DISCOUNT
) -> Tensor:
    """Discounted returns [..., S] of policies [..., S, A] for rewards [..., S, A], by one solve."""
    flow = torch.einsum("...sa,sat->...st", policy, world.transitions)
    gain = (policy * rewards).sum(-1)
    eye = torch.eye(flow.shape[-1], dtype=flow.dtype)
    return torch.linalg.solve(eye - discount * flow, gain.expand(flow.shape[:-1]))


def successor_features(world: Gridworld, policy: Tensor, discount: float = DISCOUNT) -> Tensor:
    """Discounted sums of features [..., S, F] under policies [..., S, A]; value = psi . w."""
    flow = torch.einsum("...sa,sat->...st", policy, world.transitions)
    gain = torch.einsum("...sa,saf->...sf", policy, world.features)
    return torch.linalg.solve(torch.eye(flow.shape[-1], dtype=flow.dtype) - discount * flow, gain)


def action_values(
    world: Gridworld, rewards: Tensor, values: Tensor, discount: float = DISCOUNT
) -> Tensor:
    """Q [..., S, A] from rewards [..., S, A] and values [..., S]."""
    return rewards + discount * torch.einsum("sat,...t->...sa", world.transitions, values)


def greedy_policy(q: Tensor, slack: float = 1e-6) -> Tensor:
    """Uniform over the actions within `slack` of the best: probabilities [..., S, A]."""
    best = (q >= q.amax(-1, keepdim=True) - slack).double()
    return best / best.sum(-1, keepdim=True)


def optimal_policy(
    world: Gridworld, rewards: Tensor, discount: float = DISCOUNT, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(moves Long[..., S], V* [..., S]) for rewards [..., S, A] by policy iteration (exact).

    A move replaces the current one only if it is better by more than 1e-9, so that ties end it.
    first: moves to start from, for example those of a reward nearby. discount in [0, 1).
    """
    if not 0 <= discount < 1:
        raise ValueError(f"discount must be in [0, 1), not {discount}")
    moves = rewards.argmax(-1) if first is None else first
    cells = torch.arange(len(world.starts))
    eye = torch.eye(len(cells), dtype=torch.float64)
    for _ in range(1000):
        gain = rewards.gather(-1, moves[..., None])[..., 0]
        values = torch.linalg.solve(eye - discount * world.transitions[cells, moves], gain)
        q = action_values(world, rewards, values, discount)
        better, best = q.max(-1)
        change = better > q.gather(-1, moves[..., None])[..., 0] + 1e-9
        if not change.any():
            return moves, values
        moves = torch.where(change, best, moves)
    raise ValueError("policy iteration did not settle in 1,000 rounds")


def optimal_values(world: Gridworld, rewards: Tensor, discount: float = DISCOUNT) -> Tensor:
    """V* [..., S] for rewards [..., S, A]: what the best play from each cell returns."""
    return optimal_policy(world, rewards, discount)[1]


def scaled_return(
    world: Gridworld, policy: Tensor, rewards: Tensor, discount: float = DISCOUNT
) -> Tensor:
    """(G - G_random) / (G_best - G_random) [...] of policies [..., S, A] for rewards [S, A].

    G is the mean discounted return over the start cells: 1 is optimal, 0 a random walk.
    """
    walk = torch.full_like(world.transitions[..., 0], 1 / len(MOVES))
    found, random, best = (
        v[..., world.starts].mean(-1)
        for v in (
            policy_values(world, policy, rewards, discount),
            policy_values(world, walk, rewards, discount),
            optimal_values(world, rewards, discount),
        )
    )
    return (found - random) / (best - random)


def sample_segments(world: Gridworld, n: int, length: int, generator: torch.Generator) -> Segments:
    """n segments of `length` uniformly random moves from uniformly random start cells."""
    where = torch.multinomial(world.starts.double(), n, True, generator=generator)
    states, actions = [where], torch.randint(len(MOVES), (n, length), generator=generator)
    for a in actions.T:
        chance = world.transitions[states[-1], a]
        states.append(torch.multinomial(chance, 1, generator=generator)[:, 0])
    return Segments(torch.stack(states, 1), actions)


def follow(world: Gridworld, starts: Tensor, actions: Tensor) -> Segments:
    """Segments of given start cells Long[N] and moves Long[N, L] in a deterministic world."""
    states = [starts]
    for a in actions.T:
        states.append(world.transitions[states[-1], a].argmax(-1))
    return Segments(torch.stack(states, 1), actions)


def segment_features(world: Gridworld, segments: Segments) -> Tensor:
    """Undiscounted sums of features [N, F] within segments: partial return = sums . w."""
    return world.features[segments.states[:, :-1], segments.actions].sum(1)


def load_delivery_labels(path: str | Path, world: Gridworld) -> SegmentLabels:
    """Human labels of segment pairs on `world` from a person's own copy of the authors' arrays.

    path: folder with Privileged-Control_full_filtered_{segment_pairs,Y}.npy, or the path up to
    "_full_filtered" of another condition. segment_pairs Long[N, 2, 4, 2] hold a start cell and
    three moves ((0, 0) after the end), Y [N] is 1 where the second is preferred, 0.5 for a tie.
    """
    path = Path(path).expanduser()
    prefix = path / "Privileged-Control" if path.is_dir() else path
    pairs = _array(prefix, "segment_pairs")
    votes = _array(prefix, "Y")
    if pairs.ndim != 4 or pairs.shape[1] != 2 or pairs.shape[2] < 2 or pairs.shape[3] != 2:
        raise ValueError(f"segment_pairs must be [N, 2, L + 1, 2], not {list(pairs.shape)}")
    if votes.shape != pairs.shape[:1] or not len(votes):
        raise ValueError(
            f"Y must hold one vote for each of the {len(pairs)} pairs (at least one), "
            f"not {list(votes.shape)}"
        )
    if not np.isin(votes, (0, 0.5, 1)).all():
        raise ValueError("votes in Y must be 0 (first), 0.5 (tie) or 1 (second)")
    if len(np.unique(votes)) == 1:
        raise ValueError("all votes in Y are equal: nothing can be learned from constant labels")
    first, second = (_segments(world, pairs[:, k]) for k in (0, 1))
    return SegmentLabels(first, second, 1 - torch.from_numpy(votes))


def _array(prefix: Path, name: str) -> np.ndarray:
    file = prefix.with_name(f"{prefix.name}_full_filtered_{name}.npy")
    content = io.BytesIO(checked_bytes(file))
    with suppress(AttributeError, EOFError, OSError, ValueError, BadZipFile):
        found = np.load(content, allow_pickle=False).astype(np.float64)
        if np.isfinite(found).all():
            return found
    raise ValueError(f"{file.name} is no plain NumPy array of finite numbers")


def _segments(world: Gridworld, walks: np.ndarray) -> Segments:
    """Segments from walks [N, L + 1, 2]: start cell (row, column), then moves as in MOVES."""
    walks = torch.from_numpy(walks)
    hit = (walks[:, 1:, None] == torch.tensor(MOVES)).all(-1)  # [N, L, A]
    padding = (walks[:, 1:] == 0).all(-1)  # (0, 0) follows the end of an episode
    if not (hit.any(-1) | padding).all():
        raise ValueError(
            "segment_pairs holds a move that is none of (-1, 0), (1, 0), (0, -1) and (0, 1)"
        )
    start, size = walks[:, 0], torch.tensor(world.cells.shape)
    if not ((start >= 0) & (start < size) & (start == start.round())).all():
        raise ValueError(f"segment_pairs holds a start that is no cell of a {size.tolist()} board")
    cells = (start[:, 0] * world.cells.shape[1] + start[:, 1]).long()
    segments = follow(world, cells, hit.double().argmax(-1))
    if (padding & world.starts[segments.states[:, :-1]]).any():
        raise ValueError("segment_pairs holds the empty move (0, 0) before the end of an episode")
    return segments
