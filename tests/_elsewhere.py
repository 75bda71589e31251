"""Tensors that say they are on another device than a CPU, and are computed on the CPU.

So a backend is tested off the CPU where there is nothing else: the branches that it takes there,
that it mixes no devices, and that it reads nothing back. They say "meta", the one other device that
every PyTorch knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE, CPU = torch.device("meta"), torch.device("cpu")
# Operators that wait for the device: the value decides what happens next on the host.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by bools: a nonzero first


class Elsewhere(Tensor):
    """A tensor on `DEVICE`, by its own account; `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            inner.stride(),
            inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Made(TorchDispatchMode):
    """Tensors made without another one, by their device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@contextmanager
def made_elsewhere() -> Iterator[None]:
    """Within it `torch.empty(..., device=DEVICE)` and its like give such tensors too."""
    with _Made():
        yield


def there(value: Any) -> Any:
    """A tensor of the CPU's as it would be on the device."""
    return Elsewhere(value) if isinstance(value, Tensor) else value


def back(value: Any) -> Any:
    """The values of a tensor on the device."""
    return value.inner if isinstance(value, Elsewhere) else value


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    moved = [x for x in tensors if isinstance(x, Elsewhere)]
    device = kwargs.get("device")
    remote = bool(moved) if device is None else torch.device(device).type == DEVICE.type
    if not (moved or remote):
        return func(*args, **kwargs)
    name = func.overloadpacket.__name__
    _assert_nothing_waits(name, args, moved)
    if any(x.dim() for x in tensors if not isinstance(x, Elsewhere)):
        raise RuntimeError(f"{name}: tensors on {DEVICE} and on the CPU")
    given = {key: CPU if key == "device" else value for key, value in kwargs.items()}
    found = func(*tree_map(back, args), **tree_map(back, given))
    known = {id(x.inner): x for x in moved}  # an operator in place returns its argument

    def wrapped(x: Any) -> Any:
        return known[id(x)] if id(x) in known else there(x)

    return tree_map(wrapped, found) if remote else found


def _assert_nothing_waits(name: str, args: Any, moved: list[Elsewhere]) -> None:
    by_bools = name in INDEXED and any(
        x.dtype == torch.bool for x in tree_leaves(args[1]) if isinstance(x, Tensor)
    )
    if (moved and name in WAITS) or by_bools:
        raise AssertionError(f"{name} waits for the device")
