"""`cross_entropy` and `mse_loss` within PyTorch's own modules, in every mode, to the edges."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _public import assert_agrees, batch, device_of
from torch import Tensor, nn

import fused_loss
from fused_loss import cross_entropy, mse_loss

REDUCTIONS = ("mean", "sum", "none")
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
INF, NAN = float("inf"), float("nan")
on_fast = pytest.mark.parametrize("backend", ["eager", "triton"])
on_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


@pytest.fixture
def dropped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nn.CrossEntropyLoss` and `nn.MSELoss` call ours."""
    ours = SimpleNamespace(cross_entropy=cross_entropy, mse_loss=mse_loss)
    monkeypatch.setattr(nn.modules.loss, "F", ours)


FORMS = {"C": (), "NC": (), "NCd": (2,), "NCdd": (2, 3)}


@pytest.mark.usefixtures("dropped_in")
@pytest.mark.parametrize(
    ("form", "dtype"), [*((form, F32) for form in FORMS), ("NC", F64), ("NC", F16), ("NCd", BF16)]
)
@on_reductions
def test_nn_cross_entropy_loss(reduction: str, dtype: torch.dtype, form: str):
    """weight × ignore_index × label_smoothing × hard or soft."""
    for soft, weighted, ignored, smoothing in itertools.product(
        (False, True), (False, True), (-100, 1), (0.0, 0.2)
    ):
        if soft and ignored == 1:
            continue
        _, z, _, t = batch(positions=FORMS[form], soft=soft)
        z, t = (z[0], t[0]) if form == "C" else (z, t)
        if form == "C" and not soft and ignored == int(t):
            continue  # nothing is labelled: a test of its own
        z, t = z.to(dtype), t.to(dtype) if soft else t
        weight = torch.tensor([0.5, 2.0, 1.25], dtype=dtype) if weighted else None
        options = {
            "ignore_index": ignored,
            "label_smoothing": smoothing,
            "reduction": reduction,
        }

        def ours(z: Tensor, t: Tensor, w: Tensor | None, options: dict = options) -> Tensor:
            return nn.CrossEntropyLoss(w, **options)(z, t)

        def theirs(z: Tensor, t: Tensor, w: Tensor | None, options: dict = options) -> Tensor:
            return F.cross_entropy(z, t, w, **options)

        with fused_loss.backend("eager"):
            assert ours(z, t, weight).dtype == theirs(z, t, weight).dtype == dtype
            assert_agrees(ours, theirs, (z, t, weight), leaves=(0,))


@pytest.mark.usefixtures("dropped_in")
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (1, 4), (2, 3, 2)], ids=str)
@on_reductions
def test_nn_mse_loss(reduction: str, shape: tuple, dtype: torch.dtype):
    r, y = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with fused_loss.backend("eager"):
        assert_agrees(
            lambda *x: nn.MSELoss(reduction=reduction)(*x),
            lambda *x: F.mse_loss(*x, reduction=reduction),
            (r, y),
            leaves=(0,),
        )


@pytest.mark.usefixtures("dropped_in")
@pytest.mark.filterwarnings("ignore:size_average and reduce")
def test_modules_of_the_deprecated_arguments():
    _, z, _, t = batch()
    for average, reduce in itertools.product((None, True, False), repeat=2):
        given = {"size_average": average, "reduce": reduce}
        ours = nn.CrossEntropyLoss(**given)(z, t), nn.MSELoss(**given)(z, z + 1)
        theirs = F.cross_entropy(z, t, **given), F.mse_loss(z, z + 1, **given)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


LOW = torch.finfo(F32).min / 4
ROWS = {
    "±1e4": ([1e4, -1e4, 0.0, 1e4], [1, 2, 0, 3]),
    "one among very negative ones": ([LOW, LOW, 3.0, LOW], [2, 2, 2, 2]),
    "all very negative": ([LOW, LOW, LOW, LOW], [0, 1, 2, 3]),
    "-inf beside the target": ([-INF, 1.0, 2.0, 0.0], [1, 2, 3, 1]),
    "-inf at the target": ([-INF, 1.0, 2.0, 0.0], [0, 1, 2, 3]),
    "+inf": ([INF, 1.0, 2.0, 0.0], [0, 1, 0, 1]),
    "all -inf": ([-INF] * 4, [0, 1, 2, 3]),
    "NaN": ([NAN, 1.0, 2.0, 0.0], [0, 1, 2, 3]),
}


@on_fast
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", ROWS)
@on_reductions
def test_extreme_logits(backend: str, reduction: str, name: str, soft: bool, smoothing: float):
    """Each row beside an ordinary one, so that it shows what leaks from one into the other."""
    row, classes = ROWS[name]
    device = device_of(backend)
    z = torch.tensor([row, [0.5, -1.0, 2.0, 0.0]] * 2, device=device)
    t = torch.tensor(classes, device=device)
    if soft:
        t = (F.one_hot(t, 4) + torch.tensor([0.0, 0.5, 0.25, 0.0], device=device)).float()
    options = {"reduction": reduction, "label_smoothing": smoothing}
    with fused_loss.backend(backend):
        assert_agrees(
            lambda *x: cross_entropy(*x, **options),
            lambda *x: F.cross_entropy(*x, **options),
            (z, t),
            leaves=(0,),
        )


@on_fast
@pytest.mark.parametrize("value", [1e4, -1e4, INF, -INF, NAN])
@pytest.mark.parametrize("where", [0, 1], ids=["input", "target"])
@on_reductions
def test_extreme_predictions(backend: str, reduction: str, where: int, value: float):
    pair = list(torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0)))
    pair[where][1, 1] = value
    with fused_loss.backend(backend):
        assert_agrees(
            lambda *x: mse_loss(*x, reduction=reduction),
            lambda *x: F.mse_loss(*x, reduction=reduction),
            [x.to(device_of(backend)) for x in pair],
            leaves=(0,),
        )


@on_fast
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (1, 1), (1, 1, 3), (1,)], ids=str)
@on_reductions
def test_one_sample_and_one_class(backend: str, reduction: str, shape: tuple, soft: bool):
    device = device_of(backend)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    positions = () if len(shape) == 1 else (shape[0], *shape[2:])
    t = torch.zeros(positions, dtype=torch.int64, device=device)
    t = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device) if soft else t
    with fused_loss.backend(backend):
        assert_agrees(
            lambda *x: cross_entropy(*x, reduction=reduction),
            lambda *x: F.cross_entropy(*x, reduction=reduction),
            (z, t),
            leaves=(0,),
        )


@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@on_reductions
def test_an_empty_batch(backend: str, reduction: str, soft: bool, shape: tuple):
    def gradient_and_value(function: Any) -> tuple[Tensor, Tensor]:
        z = torch.zeros(shape, requires_grad=True)
        t = torch.zeros(shape) if soft else torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        loss = function(z, t, reduction=reduction)
        return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]

    with fused_loss.backend(backend):
        ours = gradient_and_value(cross_entropy)
    for one, other in zip(ours, gradient_and_value(F.cross_entropy), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("reduction", "dtype"), [("mean", BF16), ("none", F32)], ids=str)
def test_very_many_classes(reduction: str, dtype: torch.dtype, soft: bool):
    """C = 262144 in float32 sums: no worse than PyTorch's own."""
    random = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(2, 1 << 18, generator=random)).to(dtype)
    t = torch.randint(0, 1 << 18, (2,), generator=random)
    t = torch.rand(z.shape, generator=random).to(dtype) / (1 << 17) if soft else t
    options = {"reduction": reduction, "label_smoothing": 0.1}
    with fused_loss.backend("eager"):
        assert_agrees(
            lambda *x: cross_entropy(*x, **options),
            lambda *x: F.cross_entropy(*x, **options),
            (z, t),
            leaves=(0,),
        )
