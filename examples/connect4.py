"""A policy and a value learned from self-play of Connect Four, as AlphaZero does it.

Tree search (OpenSpiel's, with random playouts) plays against itself. From each position the network
learns how the search spread its visits over the columns (the policy, a soft target) and who won in
the end (the value, -1 to 1). A full column is no move: the mask keeps it out of the softmax. The
loss, `MSE + cross-entropy`, is once fused and once written the usual way, with the same weights and
batches to begin with. The network then leaves as a verified ONNX file, and that plays its policy
against a random player.

Run it with `python examples/connect4.py`; it takes less than a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fused_loss import DualHead, combined_loss
from fused_loss.export import OnnxDualHead, export_onnx

if TYPE_CHECKING:
    from pyspiel import State

COLUMNS, ROWS = 7, 6
GAMES, SIMULATIONS = 250, 100
EXPLORATION = 1.4  # of the search
CHANNELS = 32
EPOCHS, BATCH, RATE = 12, 128, 3e-3
MATCHES = 200


class Positions(NamedTuple):
    """What the network sees, and what it should answer."""

    board: Tensor  # (N, 2, 6, 7): stones of the player to move, stones of the other; 0 or 1
    legal: Tensor  # (N, 7) bool: columns that are not full
    value: Tensor  # (N, 1): 1 where the player to move won, -1 where they lost, 0 for a draw
    policy: Tensor  # (N, 7): the share of the search's visits

    def take(self, rows: Tensor) -> Positions:
        """The positions that an index chooses."""
        return Positions(*(tensor[rows] for tensor in self))


Loss: TypeAlias = Callable[[Tensor, Tensor, Positions], Tensor]
# Boards (N, 2, 6, 7) to logits (N, 7).
Policy: TypeAlias = Callable[[np.ndarray], np.ndarray]


def board_of(state: State) -> np.ndarray:
    """(2, 6, 7), the stones of the player to move first; OpenSpiel has the first player's first."""
    player = state.current_player()
    planes = np.asarray(state.observation_tensor(player), np.float32).reshape(3, ROWS, COLUMNS)
    return planes[[player, 1 - player]]


def legal_of(state: State) -> np.ndarray:
    """(7,) bool."""
    return np.asarray(state.legal_actions_mask(), bool)


def self_play(games: int, simulations: int, seed: int) -> Positions:
    """Every position of some games in which tree search plays both sides."""
    import pyspiel

    game = pyspiel.load_game("connect_four")
    playouts = pyspiel.RandomRolloutEvaluator(1, seed)  # one a leaf
    memory, solve, verbose = 100, False, False  # MB
    search = pyspiel.MCTSBot(game, playouts, EXPLORATION, simulations, memory, solve, seed, verbose)
    random = np.random.default_rng(seed)
    boards, legal, values, policies = [], [], [], []
    for _ in range(games):
        state, players = game.new_initial_state(), []
        while not state.is_terminal():
            visits = np.zeros(COLUMNS)
            for child in search.mcts_search(state).children:
                visits[child.action] = child.explore_count
            policy = visits / visits.sum()
            players.append(state.current_player())
            boards.append(board_of(state))
            legal.append(legal_of(state))
            policies.append(policy)
            state.apply_action(int(random.choice(COLUMNS, p=policy)))
        values += [state.returns()[player] for player in players]
    return Positions(
        torch.from_numpy(np.stack(boards)),
        torch.from_numpy(np.stack(legal)),
        torch.tensor(values, dtype=torch.float32)[:, None],
        torch.from_numpy(np.stack(policies).astype(np.float32)),
    )


def make_model(seed: int) -> DualHead:
    """Two convolutions, and a head each; the same weights for the same seed.

    SiLU is smooth: at a kink of ReLU one rounding more or less can send two trainings apart.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = nn.Sequential(
            nn.Conv2d(2, CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
        )
        features = CHANNELS * ROWS * COLUMNS
        value = nn.Sequential(nn.Linear(features, 1), nn.Tanh())
        return DualHead(trunk, value, nn.Linear(features, COLUMNS))


def fused(value: Tensor, logits: Tensor, at: Positions) -> Tensor:
    """MSE of the value + cross-entropy of the policy over the legal columns."""
    return combined_loss(
        value, logits, at.value, at.policy, loss_weights=(1.0, 1.0), class_mask=at.legal
    )


def usual(value: Tensor, logits: Tensor, at: Positions) -> Tensor:
    """The same as it is mostly written: a full column gets a logit so low that it counts as 0."""
    log_p = F.log_softmax(logits.masked_fill(~at.legal, -65536.0), 1)
    return F.mse_loss(value, at.value) - (at.policy * log_p).sum(1).mean()


def batches(positions: Positions, epochs: int, seed: int) -> list[Positions]:
    """All positions in each epoch, shuffled anew."""
    random = torch.Generator().manual_seed(seed)
    order = [torch.randperm(len(positions.value), generator=random) for _ in range(epochs)]
    return [positions.take(rows) for epoch in order for rows in epoch.split(BATCH)]


def train(model: nn.Module, given: Sequence[Positions], loss: Loss) -> list[float]:
    """A step a batch; the loss of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses = []
    for batch in given:
        optimizer.zero_grad()
        result = loss(*model(batch.board), batch)
        result.backward()
        optimizer.step()
        losses.append(result.item())
    return losses


def play(policy: Policy, matches: int, seed: int) -> tuple[int, int, int]:
    """Games against a random player, all at once, who begins in every second: won, drawn, lost."""
    import pyspiel

    game = pyspiel.load_game("connect_four")
    random = np.random.default_rng(seed)
    states = [game.new_initial_state() for _ in range(matches)]
    for state in states[1::2]:
        state.apply_action(int(random.choice(state.legal_actions())))
    while running := [state for state in states if not state.is_terminal()]:
        logits = policy(np.stack([board_of(state) for state in running]))
        legal = np.stack([legal_of(state) for state in running])
        moves = np.where(legal, logits, -np.inf).argmax(1)
        for state, move in zip(running, moves, strict=True):
            state.apply_action(int(move))
            if not state.is_terminal():
                state.apply_action(int(random.choice(state.legal_actions())))
    results = [state.returns()[i % 2] for i, state in enumerate(states)]
    return results.count(1.0), results.count(0.0), results.count(-1.0)


def main(
    out: Path | None = None,
    games: int = GAMES,
    simulations: int = SIMULATIONS,
    epochs: int = EPOCHS,
    matches: int = MATCHES,
) -> None:
    """Play, train in both ways, export, and play again; the file is kept at `out`."""
    console = Console()
    positions = self_play(games, simulations, seed=0)
    full = (~positions.legal).any(1).sum()
    console.print(f"{games} games, {len(positions.value)} positions, {full} with a full column")
    given = batches(positions, epochs, seed=0)
    ways = {"fused": fused, "usual": usual}
    models = {name: make_model(0) for name in ways}
    losses = {name: train(models[name], given, loss) for name, loss in ways.items()}

    table = Table("step", *ways)
    for step in sorted({0, len(given) // 2, len(given) - 1}):
        table.add_row(str(step + 1), *(f"{losses[name][step]:.6f}" for name in ways))
    console.print(table)
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    console.print(f"the losses of a step differ by {apart:.1e} at most", highlight=False)

    with TemporaryDirectory() as scratch:
        path = out or Path(scratch, "connect4.onnx")
        report = export_onnx(models["fused"], positions.board[:64], path).report
        console.print(report.summary(), soft_wrap=True, highlight=False)
        session = OnnxDualHead(path, threads=1)
        won, drawn, lost = play(lambda boards: session(boards)[1], matches, seed=0)
    console.print(f"against a random player: {won} won, {drawn} drawn, {lost} lost")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train on self-play of Connect Four.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the ONNX file here")
    torch.set_num_threads(1)  # the tensors are small: more threads would wait for one another
    main(parser.parse_args().out)
