"""Calls of `cross_entropy` and `mse_loss`, good and bad, that the fused path leaves to PyTorch.

What PyTorch gives - value, dtype, the type of an error, the warnings - is what ours must give.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _public import batch, device_of
from torch import Tensor

import fused_loss
from fused_loss import cross_entropy, mse_loss

FLAGS = (None, True, False)
on_eager = pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
_, Z, _, T = batch()
SOFT = Z.softmax(1)
ONES = torch.ones(3)
CALLS: dict[str, tuple[tuple, dict[str, Any]]] = {
    "index above": ((Z, T + 3), {}),
    "index below": ((Z, T - 5), {}),
    "index above, (N, C, d)": ((Z[:, :, None], T[:, None] + 3), {}),
    "index above, (C,)": ((Z[0], T[0] + 3), {}),
    "index above, weighted": ((Z, T + 3, ONES), {}),
    "uint8": ((Z, T.to(torch.uint8)), {}),
    "int8": ((Z, T.to(torch.int8)), {}),
    "int32": ((Z, T.int()), {}),
    "bool targets": ((Z, T > 0), {}),
    "complex logits": ((Z * 1j, T), {}),
    "integer logits": ((Z.long(), T), {}),
    "float indices": ((Z, T.float()), {}),
    "indices (N, 1)": ((Z, T[:, None]), {}),
    "one index too few": ((Z, T[:3]), {}),
    "index (1,) for (C,)": ((Z[0], T[:1]), {}),
    "0-d logits": ((Z[0, 0], T[0]), {}),
    "no class": ((Z[:, :0], T), {}),
    "empty batch": ((Z[:0], T[:0]), {}),
    "empty batch, sum": ((Z[:0], T[:0]), {"reduction": "sum"}),
    "empty batch, none": ((Z[:0], T[:0]), {"reduction": "none"}),
    "all ignored": ((Z, T * 0 - 100), {}),
    "all ignored, sum": ((Z, T * 0 - 100), {"reduction": "sum"}),
    "soft, ignore_index 1": ((Z, SOFT), {"ignore_index": 1}),
    "soft, ignore_index -1": ((Z, SOFT), {"ignore_index": -1}),
    "soft in float64": ((Z, SOFT.double()), {}),
    "soft in float16": ((Z, SOFT.half()), {}),
    "soft of another shape": ((Z, SOFT[:, :2]), {}),
    "weight of another shape": ((Z, T, ONES[:2]), {}),
    "weight of another dtype": ((Z, T, ONES.double()), {}),
    "weight is a list": ((Z, T, [1.0, 1.0, 1.0]), {}),
    "weight requires grad": ((Z, T, ONES.clone().requires_grad_()), {}),
    "weight 0": ((Z, T, ONES * 0), {}),
    "smoothing 2": ((Z, T), {"label_smoothing": 2.0}),
    "smoothing NaN": ((Z, T), {"label_smoothing": torch.nan}),
    "smoothing int": ((Z, T), {"label_smoothing": 1}),
    "smoothing str": ((Z, T), {"label_smoothing": "x"}),
    "smoothing None": ((Z, T), {"label_smoothing": None}),
    "smoothing tensor": ((Z, T), {"label_smoothing": torch.tensor(0.25)}),
    "ignore_index float": ((Z, T), {"ignore_index": 1.0}),
    "ignore_index bool": ((Z, T), {"ignore_index": True}),
    "ignore_index numpy": ((Z, T), {"ignore_index": np.int64(1)}),
    "ignore_index 2**40": ((Z, T), {"ignore_index": 2**40}),
    "ignore_index 2**70": ((Z, T), {"ignore_index": 2**70}),
    "reduction": ((Z, T), {"reduction": "avg"}),
    "reduction None": ((Z, T), {"reduction": None}),
    "no logits": ((None, T), {}),
    "no logits, soft": ((None, SOFT), {}),
    "no targets": ((Z, None), {}),
    "list": (([1.0, 2.0], T), {}),
    "two devices": ((Z, T.to("meta")), {}),
    "unknown keyword": ((Z, T), {"alpha": 0.5}),
    "soft targets require grad": ((Z, SOFT.clone().requires_grad_()), {}),
    "sparse": ((Z.to_sparse(), T), {}),
}
MSE_CALLS: dict[str, tuple[tuple, dict[str, Any]]] = {
    "broadcast rows": ((Z, Z[:1]), {}),
    "broadcast columns": ((Z[:, :1], Z), {"reduction": "none"}),
    "broadcast 0-d": ((Z, Z[0, 0]), {"reduction": "sum"}),
    "no broadcast": ((Z, Z[:3]), {}),
    "another dtype": ((Z, Z.double()), {}),
    "half and float": ((Z.half(), Z), {}),
    "integers": ((T, T), {}),
    "integer target": ((Z[:, 0], T), {}),
    "integer input": ((T, Z[:, 0]), {}),
    "bool": ((T > 0, T > 1), {}),
    "complex": ((Z * 1j, Z * 1j), {}),
    "empty": ((Z[:0], Z[:0]), {}),
    "empty, none": ((Z[:0], Z[:0]), {"reduction": "none"}),
    "NaN": ((Z * torch.nan, Z), {}),
    "weight": ((Z, Z + 1), {"weight": Z.abs()}),
    "weight sum": ((Z, Z + 1), {"weight": Z.abs(), "reduction": "sum"}),
    "weight none": ((Z, Z + 1), {"weight": Z.abs(), "reduction": "none"}),
    "weight of another shape": ((Z, Z + 1), {"weight": ONES}),
    "weight requires grad": ((Z, Z + 1), {"weight": Z.abs().requires_grad_()}),
    "weight is a float": ((Z, Z + 1), {"weight": 2.0}),
    "target requires grad": ((Z, Z.clone().requires_grad_()), {}),
    "reduction": ((Z, Z), {"reduction": "avg"}),
    "reduction None": ((Z, Z), {"reduction": None}),
    "no input": ((None, Z), {}),
    "no target": ((Z, None), {}),
    "number": ((Z, 1.0), {}),
    "two devices": ((Z, Z.to("meta")), {}),
    "unknown keyword": ((Z, Z), {"alpha": 0.5}),
    "sparse": ((Z, Z.to_sparse()), {}),
}


def observed(function: Callable, *args: Any, **kwargs: Any) -> tuple:
    """What a call gives: its dtype, shape and value, or the type of its error; and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = function(*args, **kwargs)
            result = value.dtype, tuple(value.shape), value.requires_grad, value.detach()
        except Exception as error:
            result = (type(error),)
    return result, [(w.category, str(w.message)) for w in caught]


def assert_same(ours: Callable, theirs: Callable, *args: Any, **kwargs: Any) -> None:
    (*form, value), warned = observed(ours, *args, **kwargs)
    (*expected_form, expected), expected_warned = observed(theirs, *args, **kwargs)
    assert warned == expected_warned
    assert form == expected_form
    if not isinstance(expected, Tensor):
        assert value is expected
    else:
        torch.testing.assert_close(value, expected, equal_nan=True)


@on_eager
@pytest.mark.parametrize("reduction", ["mean", "none", "nonsense"])
@pytest.mark.parametrize(("average", "reduce"), list(itertools.product(FLAGS, FLAGS)))
def test_deprecated_arguments(backend: str, average: Any, reduce: Any, reduction: str):
    with fused_loss.backend(backend):
        assert_same(
            cross_entropy, F.cross_entropy, Z, T, None, average, -100, reduce, reduction, 0.25
        )
        named = {"size_average": average, "reduce": reduce, "reduction": reduction}
        assert_same(cross_entropy, F.cross_entropy, Z, T, **named)
        assert_same(mse_loss, F.mse_loss, Z, Z + 1, average, reduce, reduction)
        assert_same(mse_loss, F.mse_loss, Z, Z + 1, **named)


@on_eager
@pytest.mark.parametrize("label", CALLS)
def test_cross_entropy_beyond_the_fused_path(backend: str, label: str):
    args, kwargs = CALLS[label]
    with fused_loss.backend(backend):
        assert_same(cross_entropy, F.cross_entropy, *args, **kwargs)


@on_eager
@pytest.mark.parametrize("label", MSE_CALLS)
def test_mse_loss_beyond_the_fused_path(backend: str, label: str):
    args, kwargs = MSE_CALLS[label]
    with fused_loss.backend(backend):
        assert_same(mse_loss, F.mse_loss, *args, **kwargs)


@on_eager
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_is_pytorch_s(backend: str, dtype: torch.dtype):
    with fused_loss.backend(backend), torch.autocast("cpu", torch.bfloat16):
        # cross_entropy and mse_loss are computed in float32 there, whatever comes in
        assert_same(cross_entropy, F.cross_entropy, Z.to(dtype), T)
        assert_same(cross_entropy, F.cross_entropy, Z.to(dtype), SOFT.to(dtype))
        assert_same(mse_loss, F.mse_loss, Z.to(dtype), SOFT.to(dtype))


def beyond_triton() -> dict[str, Callable[[Tensor], Any]]:
    """Legal calls that the kernel does not take, of logits (4, 3)."""
    soft = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    y = soft.clone().requires_grad_()
    return {
        "another dtype": lambda z: cross_entropy(z, soft.double().to(z.device)),
        "soft targets that require grad": lambda z: cross_entropy(z, y.to(z.device)),
        "empty": lambda z: cross_entropy(z[:0], T[:0].to(z.device)),
        "mse_loss weight": lambda z: mse_loss(z, z, weight=z.abs()),
        "mse_loss broadcast": lambda z: mse_loss(z, z[0]),
        "mse_loss, another dtype": lambda z: mse_loss(z, z.double()),
        "mse_loss, a target that requires grad": lambda z: mse_loss(z, y.to(z.device)),
    }


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("label", beyond_triton())
def test_triton_asked_for_by_name_does_not_fall_back(label: str):
    call = beyond_triton()[label]
    name = "mse_loss" if label.startswith("mse_loss") else "cross_entropy"
    with (
        fused_loss.backend("triton"),
        pytest.raises(NotImplementedError, match=rf'backend\("triton"\) does not take this {name}'),
    ):
        call(Z.to(device_of("triton")))
    assert call(Z).dtype.is_floating_point


class Seen(Tensor):
    """Answers with what it was asked."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return function, types, args, kwargs


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("ours", "theirs", "arguments"),
    [
        (cross_entropy, F.cross_entropy, (Z, T, ONES, None, 1, None, "sum", 0.25)),
        (mse_loss, F.mse_loss, (Z, Z, None, None, "sum", ONES)),
    ],
    ids=["cross_entropy", "mse_loss"],
)
def test_a_subclass_is_asked_as_pytorch_asks_it(ours, theirs, arguments: tuple, place: int):
    given = list(arguments)
    place = 5 if ours is mse_loss and place == 2 else place  # its weight comes last
    given[place] = given[place].as_subclass(Seen)
    function, types, args, kwargs = ours(*given)
    expected, *rest = theirs(*given)
    assert function is ours
    assert expected is theirs
    assert types == rest[0]
    assert [id(x) for x in args] == [id(x) for x in rest[1]]
    assert {k: id(v) for k, v in kwargs.items()} == {k: id(v) for k, v in rest[2].items()}


def test_a_plain_subclass_comes_back():
    class Named(Tensor):
        pass

    z = Z.as_subclass(Named)
    for loss, expected in (
        (cross_entropy(z, T), F.cross_entropy(Z, T)),
        (mse_loss(Z, z + 1), F.mse_loss(Z, Z + 1)),
    ):
        assert type(loss) is Named
        assert torch.equal(loss, expected)
