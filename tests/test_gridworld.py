"""Boards and exact planning against hand counts, iteration and closed forms; the label loader."""

import numpy as np
import pytest
import torch

from rlgenkit.worlds import gridworld as g

BOARD = g.delivery_board()
WEIGHTS = torch.tensor(g.DELIVERY_WEIGHTS, dtype=torch.float64)
REWARDS = BOARD.features @ WEIGHTS
WALK = torch.full((100, 4), 0.25, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_delivery_board_has_the_published_returns():
    assert int(BOARD.starts.sum()) == 92
    best = g.optimal_values(BOARD, REWARDS)[BOARD.starts].mean()
    random = g.policy_values(BOARD, WALK, REWARDS)[BOARD.starts].mean()
    assert float(best) == pytest.approx(41.208, abs=5e-4)
    assert float(random) == pytest.approx(-71.257, abs=5e-4)


def test_what_a_move_brings():
    def brings(row, column, move):
        return dict(zip(g.FEATURES, BOARD.features[10 * row + column, move].tolist()))

    assert brings(7, 9, 1)["goal"] == 1 and brings(7, 9, 1)["mud"] == 0  # down into the goal
    assert brings(1, 3, 3) == {
        "gas": 1,
        "goal": 0,
        "sheep": 0,
        "coin": 1,
        "road block": 0,
        "mud": 0,
    }
    assert brings(1, 9, 3)["mud"] == 1 and brings(1, 9, 3)["gas"] == 0  # bump on mud: mud again
    assert brings(9, 9, 3)["gas"] == 1 and brings(9, 9, 3)["coin"] == 0  # bump on a coin: gas only
    assert brings(0, 2, 0)["road block"] == 0  # nor does a bump pay the road block
    assert brings(3, 3, 3)["gas"] == 1 and int(BOARD.transitions[33, 3].argmax()) == 33  # a house
    assert not BOARD.features[89].any() and float(BOARD.transitions[89, 0, 89]) == 1  # the end


def test_policy_iteration_against_value_iteration():
    rewards = torch.randn(5, 100, 4, generator=generator(), dtype=torch.float64)
    exact, values = g.optimal_values(BOARD, rewards, 0.9), torch.zeros(5, 100, dtype=torch.float64)
    for _ in range(300):
        values = g.action_values(BOARD, rewards, values, 0.9).amax(-1)
    assert torch.allclose(exact, values, atol=1e-9)


def test_corridor_by_hand():
    world = g.make_board(torch.tensor([[0, 0, 0, 1]]))
    rewards = world.features @ WEIGHTS
    values = g.optimal_values(world, rewards)
    d = g.DISCOUNT
    assert torch.allclose(values, torch.tensor([-1 - d + 50 * d**2, -1 + 50 * d, 50, 0]).double())
    policy = g.greedy_policy(g.action_values(world, rewards, values))
    assert (
        torch.equal(policy[:3, 3], torch.ones(3).double()) and policy[3, 0] == 0.25
    )  # ties at the end
    assert float(g.scaled_return(world, policy, rewards)) == pytest.approx(1)
    assert float(
        g.scaled_return(world, torch.full((4, 4), 0.25).double(), rewards)
    ) == pytest.approx(0)


def test_successor_features_are_the_values_of_every_reward():
    policy = torch.rand(3, 100, 4, generator=generator(), dtype=torch.float64)
    policy /= policy.sum(-1, keepdim=True)
    psi = g.successor_features(BOARD, policy)
    assert torch.allclose(psi @ WEIGHTS, g.policy_values(BOARD, policy, REWARDS), atol=1e-8)


def test_segments_are_walks_on_the_board():
    segments = g.sample_segments(BOARD, 500, 3, generator())
    assert BOARD.starts[segments.states[:, 0]].all()
    again = g.follow(BOARD, segments.states[:, 0], segments.actions)
    assert torch.equal(again.states, segments.states)
    steps = sum(REWARDS[segments.states[:, t], segments.actions[:, t]] for t in range(3))
    assert torch.allclose(g.segment_features(BOARD, segments) @ WEIGHTS, steps)
    ended = ~BOARD.starts[segments.states[:, 1]]
    assert ended.any() and (segments.states[ended, 1] == segments.states[ended, 3]).all()


def test_random_boards_can_be_finished():
    for seed in range(3):
        world = g.random_board(generator(seed), 6)
        assert int((world.cells == g.GOAL).sum()) == 1
        goal = torch.tensor([0, 1.0, 0, 0, 0, 0]).double()
        assert (g.optimal_values(world, world.features @ goal)[world.starts] > 0.5).all()
    with pytest.raises(ValueError, match="reachable goal"):
        g.random_board(generator(), 1)


def write_labels(folder, walks, votes, name="Privileged-Control"):
    np.save(folder / f"{name}_full_filtered_segment_pairs.npy", np.asarray(walks))
    np.save(folder / f"{name}_full_filtered_Y.npy", np.asarray(votes))


WALKS = [
    [[[4, 2], [-1, 0], [0, -1], [0, -1]], [[8, 8], [0, 1], [0, 0], [0, 0]]],
    [[[0, 0], [0, 1], [1, 0], [0, 1]], [[9, 9], [-1, 0], [0, 0], [0, 0]]],
]


def test_loader_reads_the_authors_format(tmp_path):
    write_labels(tmp_path, WALKS, [1.0, 0.5])
    write_labels(tmp_path, WALKS[:1] * 2, [0, 1], "Question-Control")
    labels = g.load_delivery_labels(tmp_path, BOARD)
    assert labels.first.states[0].tolist() == [42, 32, 31, 30]
    assert labels.second.states[0].tolist() == [88, 89, 89, 89]  # (0, 0) pads after the goal
    assert labels.votes.tolist() == [0.0, 0.5]  # the file's 1 means the second
    other = g.load_delivery_labels(tmp_path / "Question-Control", BOARD)
    assert other.votes.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "walks, votes, match",
    [
        (WALKS, [1.0, 1.0], "constant"),
        (WALKS, [1.0], "one vote for each"),
        (WALKS, [1.0, 0.3], "votes in Y"),
        (np.zeros((0, 2, 4, 2), int), [], "at least one"),
        (np.zeros((2, 4, 2), int), [0, 1], r"\[N, 2"),
        (np.full((2, 2, 4, 2), 2), [0, 1], "a move that is none"),
        (np.array(WALKS) + [[[10, 0], [0, 0], [0, 0], [0, 0]]], [0, 1], "no cell of a"),
        ([[[[0, 0], [0, 0], [0, 1], [0, 1]]] * 2] * 2, [0, 1], "empty move"),
    ],
)
def test_loader_refuses_malformed_files(tmp_path, walks, votes, match):
    write_labels(tmp_path, walks, votes)
    with pytest.raises(ValueError, match=match):
        g.load_delivery_labels(tmp_path, BOARD)


def test_loader_names_missing_and_foreign_files(tmp_path):
    with pytest.raises(ValueError, match="segment_pairs.npy is missing"):
        g.load_delivery_labels(tmp_path, BOARD)
    write_labels(tmp_path, WALKS, [0, 1])
    (tmp_path / "Privileged-Control_full_filtered_Y.npy").write_text("no array")
    with pytest.raises(ValueError, match="no plain NumPy array"):
        g.load_delivery_labels(tmp_path, BOARD)


def test_bad_boards_and_discounts():
    with pytest.raises(ValueError, match="codes"):
        g.make_board(torch.tensor([[0, 99]]))
    with pytest.raises(ValueError, match="discount"):
        g.optimal_values(BOARD, REWARDS, 1.0)
