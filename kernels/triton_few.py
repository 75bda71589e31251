"""Few long rows: the launch that reads them in slices, before the one that reduces."""

from __future__ import annotations

from typing import Any

from fused_loss.kernels import triton_table
from fused_loss.kernels.triton_heads import Heads
from fused_loss.kernels.triton_split import VALUES

OF_BOTH = (
    "S", "C",
    "z_stride_n", "z_stride_c", "z_stride_s", "t_stride_n", "t_stride_c", "t_stride_s",
    "class_mask_stride_n", "class_mask_stride_c", "class_mask_stride_s", "ignore_index",
    "smoothing", "SOFT", "HAS_WEIGHT", "HAS_MASK", "SMOOTH", "UNIT", "BLOCK_C", "ACC",
)  # fmt: skip


def few_rows(heads: Heads, processors: int) -> FewRows | None:
    """How the launch table splits the rows of the call, if it does; its tile is then the call's."""
    if heads.z.tensor is None or heads.spec.per_sample:
        return None
    slices = triton_table.slices(
        heads.z.classes,
        heads.adjacent,
        heads.values,
        heads.dtype.itemsize,
        heads.positions,
        processors,
    )
    if slices is None:
        return None
    heads.tile = slices.tile
    return FewRows(heads, slices)


class FewRows:
    """The call's rows, split over several programs each."""

    def __init__(self, heads: Heads, slices: triton_table.Slices) -> None:
        self.heads, self.slices = heads, slices

    @property
    def programs(self) -> int:
        """Of the launch that reads: one a slice."""
        return self.heads.positions * self.slices.number

    @property
    def writers(self) -> int:
        """Of those of the launch that reduces: one a slice to write, or one a row."""
        return self.heads.positions if self.heads.z_grad is None else self.programs

    def reading(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What `slices_kernel` takes, but pointers."""
        return {
            **{name: arguments[name] for name in OF_BOTH},
            "positions": self.heads.positions,
            "slices": self.slices.number,
            "columns": self.slices.columns,
        }

    @property
    def published(self) -> int:
        """How many numbers the slices publish."""
        return VALUES.value * self.programs
