"""Every row of the contract's "Bad input" table, on every backend that can be asked for."""

from typing import Any

import pytest
import torch
from _asserts import launches
from _bad_input import BAD, NAMES, NORMALIZERS, OPTIONAL, Bad, T, Z, changed
from _bad_options import BAD_OPTIONS
from _public import ALL, assert_agrees, batch, composed, device_of

import fused_loss
from fused_loss import checks, combined_loss


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("bad", BAD + BAD_OPTIONS, ids=lambda bad: bad.label)
def test_bad_input_is_named(bad: Bad, backend: str):
    arguments = changed(device_of(backend), **bad.changes)
    with (
        fused_loss.backend(backend),
        pytest.raises(bad.error, match=bad.message) as caught,
    ):
        combined_loss(**arguments)
    assert caught.type is bad.error


@pytest.mark.parametrize("name", [*NAMES[1:], *OPTIONAL, *NORMALIZERS, "alpha", "loss_weights"])
@pytest.mark.parametrize("backend", ALL)
def test_two_devices_are_named(name: str, backend: str):
    device = device_of(backend)
    more = {
        "class_weight": torch.ones(3),
        "class_mask": torch.ones(3, dtype=torch.bool),
        "regression_weight": torch.ones(4, 1),
        "classification_weight": torch.ones(4),
        **dict.fromkeys(("alpha", *NORMALIZERS), torch.tensor(0.5)),
        "loss_weights": torch.ones(2),
    }
    arguments = changed(device, **({name: more[name]} if name in more else {}))
    arguments[name] = arguments[name].to("meta")
    with (
        fused_loss.backend(backend),
        pytest.raises(ValueError, match=f"is on meta and regression_output on {device.type}") as e,
    ):
        combined_loss(**arguments)
    assert "move all tensors to one device" in str(e.value)
    assert str(e.value).split()[0] == name


ILLEGAL = {
    "above": ((4, 3), [0, 3, 1, 2], torch.int64, 3),
    "negative": ((4, 3), [0, 1, -1, 2], torch.int64, -1),
    "another ignore_index": ((4, 3), [0, 1, -99, 2], torch.int64, -99),
    "uint8 156 is not -100": ((4, 3), [0, 1, 156, 2], torch.uint8, 156),
    "int16": ((4, 3), [0, 1, 2, 300], torch.int16, 300),
    "(C,)": ((3,), 3, torch.int64, 3),
    "(N, C, d)": ((2, 3, 2), [[0, 1], [7, 2]], torch.int64, 7),
}


@pytest.mark.parametrize(
    "options", ["plain", "class_weight", "class_mask", "label_smoothing", "none"]
)
@pytest.mark.parametrize("case", ILLEGAL, ids=str)
def test_eager_names_an_illegal_class_on_the_cpu(case: str, options: str):
    shape, index, dtype, named = ILLEGAL[case]
    t = torch.tensor(index, dtype=dtype)
    more: dict[str, Any] = {
        "plain": {},
        "class_weight": {"class_weight": torch.ones(3)},
        "class_mask": {"class_mask": torch.tensor([True, True, False])},
        "label_smoothing": {"label_smoothing": 0.1},
        "none": {"reduction": "none"},
    }[options]
    r = torch.zeros(shape[:1])
    with (
        fused_loss.backend("eager"),
        pytest.raises(IndexError, match=rf"class index {named}, outside \[0, 3\)") as caught,
    ):
        combined_loss(r, torch.zeros(shape, requires_grad=True), r, t, **more)
    assert caught.type is IndexError


@pytest.mark.parametrize("case", ILLEGAL, ids=str)
def test_the_kernel_gives_nan_for_an_illegal_class(case: str):
    shape, index, dtype, _ = ILLEGAL[case]
    device = device_of("triton")
    t = torch.tensor(index, dtype=dtype, device=device)
    z = torch.zeros(shape, device=device, requires_grad=True)
    r = torch.zeros(shape[:1], device=device)
    with fused_loss.backend("triton"), launches() as log:
        loss = combined_loss(r, z, r, t)
        loss.backward()
    assert log.kernels
    assert loss.isnan()
    illegal = ((t.long() < 0) | (t.long() >= 3)).cpu()
    rows = z.grad.cpu().isnan() if z.dim() == 1 else z.grad.cpu().isnan().movedim(1, -1)
    assert rows.tolist() == illegal.unsqueeze(-1).expand_as(rows).tolist()


def test_debug_reads_the_classes_on_every_backend(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "DEBUG", True)
    for backend in ALL:
        good = changed(device_of(backend))
        bad = good | {T: good[T] + 3}
        soft = good | {T: torch.full_like(good[Z], 0.5)}
        with fused_loss.backend(backend):
            assert combined_loss(**good).isfinite()
            assert combined_loss(**soft).isfinite()
            with pytest.raises(IndexError, match=r"class index \d, outside \[0, 3\)"):
                combined_loss(**bad)


@pytest.mark.parametrize("backend", ALL)
def test_an_empty_batch_is_pytorch_s(backend: str):
    arguments = batch(device=device_of(backend))
    for reduction in ("mean", "sum", "none"):
        r, z, y, t = (x[:0].clone() for x in arguments)
        r.requires_grad_(), z.requires_grad_()
        with fused_loss.backend(backend):
            loss = combined_loss(r, z, y, t, reduction=reduction)
        loss.sum().backward()
        expected = {"mean": torch.nan, "sum": 0.0}.get(reduction)
        if expected is None:
            assert loss.shape == (0,)
        else:
            torch.testing.assert_close(loss.cpu(), torch.tensor(expected), equal_nan=True)
        assert r.grad.shape == r.shape
        assert z.grad.shape == z.shape


@pytest.mark.parametrize("where", NAMES[:3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", ALL)
def test_nan_and_inf_propagate_as_in_pytorch(backend: str, value: float, where: str):
    device = device_of(backend)
    inputs = batch(device=device)
    inputs[NAMES.index(where)][1, 1] = value
    with fused_loss.backend(backend):
        assert_agrees(combined_loss, composed, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
def test_a_gpu_gives_nan_for_an_illegal_class_without_a_sync(backend: str):
    r, z, y, t = batch(device="cuda")
    t[1] = 3
    z.requires_grad_()
    with fused_loss.backend(backend):
        combined_loss(r, z, y, t).backward()  # the first call compiles and allocates
        z.grad = None
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = combined_loss(r, z, y, t)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.isnan()
    assert z.grad.isnan().all(1).tolist() == [False, True, False, False]
    assert z.grad.isnan().any(1).tolist() == [False, True, False, False]
