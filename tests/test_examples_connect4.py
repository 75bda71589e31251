import re
from pathlib import Path

import connect4 as example
import numpy as np
import pytest
import torch
from _examples import assert_trains_alike, double

from fused_loss import backend
from fused_loss.export import OnnxDualHead


@pytest.fixture(scope="module")
def positions() -> example.Positions:
    return example.self_play(games=20, simulations=25, seed=0)


def test_positions_are_of_whole_games(positions: example.Positions):
    board, legal, value, policy = positions
    assert (board.shape[1:], board.dtype) == ((2, 6, 7), torch.float32)
    assert (legal.dtype, value.shape[1:], policy.shape[1:]) == (torch.bool, (1,), (7,))
    empty = board.sum((1, 2, 3)) == 0
    assert empty.sum() == 20
    assert (board.sum(1) <= 1).all()  # no field has two stones
    own, other = board.sum((2, 3)).unbind(1)
    assert torch.equal(other - own, (own + other) % 2)  # the first player has one more or as many
    # A column is full where its six fields are.
    assert torch.equal(legal, board.sum((1, 2)) < 6)
    assert (~legal).any()
    assert (policy[~legal] == 0).all()
    share = policy.sum(1)
    assert ((share - 1).abs() <= example.COLUMNS * torch.finfo(share.dtype).eps).all()
    # Who is to move changes each ply, and so does the sign of the outcome.
    assert torch.equal(value[1:][~empty[1:]], -value[:-1][~empty[1:]])
    assert set(value.unique().tolist()) <= {-1.0, 0.0, 1.0}
    # The search sees who wins: the last move of a game that is not drawn is the winner's.
    last = torch.cat((empty[1:], torch.tensor([True])))
    assert (value[last] >= 0).all()


def test_the_same_seed_plays_the_same_games(positions: example.Positions):
    for one, other in zip(positions, example.self_play(20, 25, seed=0), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(example.self_play(1, 25, seed=1).policy[0], positions.policy[0])


def test_the_stones_of_the_player_to_move_come_first():
    import pyspiel

    state = pyspiel.load_game("connect_four").new_initial_state()
    for column, own, other in ((3, [], [3]), (0, [3], [0]), (6, [0], [3, 6])):
        state.apply_action(column)
        board = example.board_of(state)
        assert np.flatnonzero(board[0].any(0)).tolist() == own
        assert np.flatnonzero(board[1].any(0)).tolist() == other


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_the_fused_loss_is_the_usual_one(positions: example.Positions, name: str):
    at = double(positions)
    r, z = (out.detach() for out in example.make_model(0).double()(at.board))
    results = []
    with backend(name):
        for loss in (example.fused, example.usual):
            leaves = r.clone().requires_grad_(), z.clone().requires_grad_()
            result = loss(*leaves, at)
            results.append((result.detach(), *torch.autograd.grad(result, leaves)))
    for ours, theirs in zip(*results, strict=True):
        # A sum over the positions, and one over the columns.
        bound = (len(r) + example.COLUMNS) * torch.finfo(torch.float64).eps * theirs.abs().max()
        assert (ours - theirs).abs().max() <= bound
    assert (results[0][2][~at.legal] == 0).all()
    assert (results[0][2][at.legal] != 0).any()


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_it_trains_as_the_usual_loss_does(positions: example.Positions, name: str):
    with backend(name):
        assert_trains_alike(
            lambda: example.make_model(0),
            lambda model, batches: example.train(model, batches, example.fused),
            lambda model, batches: example.train(model, batches, example.usual),
            example.batches(positions, epochs=2, seed=0),
        )


def test_a_policy_plays_legal_moves_on_either_side():
    def stack(boards: np.ndarray) -> np.ndarray:
        """The first column of all, full or not."""
        calls.append(len(boards))
        return np.tile(np.arange(7, 0, -1.0), (len(boards), 1))

    calls: list[int] = []
    won, drawn, lost = example.play(stack, matches=40, seed=0)
    assert won + drawn + lost == 40
    assert calls[0] == 40 > calls[-1]
    # Four in a column win unless a random stone falls between, on either side.
    assert won > 2 * lost


def test_it_learns_exports_and_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "connect4.onnx"
    example.main(path, games=8, simulations=20, epochs=2, matches=10)
    said = capsys.readouterr().out
    assert re.search(r"^8 games, \d+ positions, \d+ with a full column$", said, re.MULTILINE)
    assert re.search(
        r"^the losses of a step differ by \d\.\de[+-]\d\d at most$", said, re.MULTILINE
    )
    scores = re.search(r"player: (\d+) won, (\d+) drawn, (\d+) lost", said)
    assert scores
    assert sum(map(int, scores.groups())) == 10
    value, logits = OnnxDualHead(path)(example.self_play(1, 20, seed=2).board.numpy())
    assert (value.shape[1:], logits.shape[1:]) == ((1,), (7,))
    assert (np.abs(value) <= 1).all()
