"""Rows of eleven logits in which one block of four is special."""

INF, NAN = float("inf"), float("nan")
SPECIAL_ROWS = {
    "first block -inf": [-INF] * 4 + [0.5, 1, 2, 3, 1, 0, -1],
    "middle block -inf": [0.5, 1, 2, 3] + [-INF] * 4 + [1, 0, -1],
    "last block -inf": [0.5, 1, 2, 3, 1, 0, -1, 2] + [-INF] * 3,
    "all -inf": [-INF] * 11,
    "a later +inf": [0.5] * 9 + [INF, 1],
    "an early +inf": [INF] + [0.5] * 10,
    "a later NaN": [0.5] * 9 + [NAN, 1],
    "an early NaN": [NAN] + [0.5] * 10,
    "rising": [-1e30] * 4 + [-1e4] * 4 + [1e4] * 3,
    "falling": [1e30] * 4 + [1e4] * 4 + [-1e30] * 3,
    "very negative": [-1e30] * 11,
}
