import pytest
import torch
from _asserts import assert_matches, fused
from _cases import COVERING, PRODUCT
from _public import batch

from fused_loss import Components, combined_loss, kernels, task_losses
from fused_loss.kernels import native
from fused_loss.spec import LossSpec, LossTensors, Needs


def backend_of(*inputs, **scalars):
    return kernels.resolve(LossSpec(**scalars), LossTensors(*inputs))


@pytest.mark.parametrize("case", PRODUCT + COVERING, ids=str)
def test_value_and_gradients(case):
    problem = case.problem()
    assert_matches(problem, fused(problem, "auto"), fused(problem, "reference"))


def test_what_it_takes():
    r, z, y, t = batch(n=1024, c=512)
    assert z.numel() == native.MOST_LOGITS
    assert backend_of(r, z, y, t) == "native"
    assert backend_of(r, z, y, torch.softmax(z, 1)) == "native"
    assert backend_of(r, z, y, t, label_smoothing=0.1, ignore_index=3, reduction="sum") == "native"
    assert backend_of(None, z, None, t) == "native"
    assert backend_of(r, None, y, None) == "native"


def test_every_option_is_for_it_but_to_write_in_place():
    for scalars in (
        {"reduction": "none"},
        {"nan_targets": "ignore"},
        {"regression_normalizer": 2.0},
        {"classification_normalizer": 2.0},
    ):
        assert backend_of(*batch(), **scalars) == "native"
    assert backend_of(*batch(), inplace_gradient=True) == "eager"
    for name in ("class_weight", "class_mask", "regression_weight", "classification_weight"):
        tensors = LossTensors(*batch())._replace(**{name: torch.ones(())})
        assert kernels.resolve(LossSpec(), tensors) == "native"


def test_more_elements_are_not_for_it():
    r, z, y, t = batch(n=1024, c=513)
    assert backend_of(r, z, y, t) == "eager"
    assert native.plain(r, z, y, t, 0.5, None, None, 0.0, "mean") is None
    long = torch.randn(native.MOST_ERRORS + 1)
    assert native.plain(long, z[:8], long, t[:8], 0.5, None, None, 0.0, "mean") is None
    assert backend_of(long, None, long, None) == "eager"
    assert backend_of(r[:0], z[:0], y[:0], t[:0]) == "eager"
    assert backend_of(r[0], z[0], y[0], t[0]) == "eager"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 0.25},
        {"label_smoothing": 0.1},
        {"class_weight": torch.rand(5) + 0.5},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"loss_weights": (2.0, 0.25)},
        {"alpha": torch.tensor(0.3, requires_grad=True)},
        {"loss_weights": torch.tensor([2.0, 0.3], requires_grad=True)},
    ],
    ids=lambda options: ",".join(options),
)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("positions", [(), (4,)])
def test_a_plain_call_has_the_bits_of_the_general_way(options, soft, positions, monkeypatch):
    r, y = torch.randn(6, 2), torch.randn(6, 2)
    z = torch.randn(6, 5, *positions)
    t = torch.softmax(torch.randn_like(z), 1) if soft else torch.randint(5, (6, *positions))
    leaves = [r.requires_grad_(), z.requires_grad_()]
    leaves += [v for v in options.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    taken = []

    def results():
        loss, components = combined_loss(r, z, y, t, return_components=True, **options)
        assert not any(component.requires_grad for component in components)
        return loss, *components, *torch.autograd.grad(loss.sum(), leaves)

    def noted(*arguments, plain=native.plain):
        taken.append(plain(*arguments))
        return taken[-1]

    monkeypatch.setattr(native, "plain", noted)
    plain = results()
    assert (taken[0] is None) == (options == {"reduction": "none"} and bool(positions))
    monkeypatch.setattr(native, "plain", lambda *_: None)
    few_ulps = 8 * torch.finfo(torch.float32).eps if "reduction" in options else 0.0
    for one, other in zip(plain, results(), strict=True):
        torch.testing.assert_close(one, other, rtol=few_ulps, atol=few_ulps / 8)


def test_what_a_plain_call_leaves_to_the_general_way():
    r, z, y, t = batch(c=3)
    weight = torch.ones(3)

    def plain(**changes):
        given = {"r": r, "z": z, "y": y, "t": t, "alpha": 0.5, "pair": None}
        given |= {"class_weight": None, "smoothing": 0.0, "reduction": "mean"}
        return native.plain(**{**given, **changes})

    assert plain() is not None
    assert plain(class_weight=weight) is not None
    for changes in (
        {"r": r.double(), "y": y.double()},
        {"y": y.double()},
        {"y": y[:, None]},
        {"r": r[:0], "y": y[:0]},
        {"z": z[0], "t": t[0]},
        {"z": z.bfloat16()},
        {"t": t.int()},
        {"t": t[:-1]},
        {"t": t + 3},
        {"t": z.double()},
        {"t": z[:, :2]},
        {"t": torch.full_like(t, -100)},
        {"t": None},
        {"alpha": 1},
        {"alpha": torch.tensor([0.5])},
        {"alpha": torch.tensor(0.5).double()},
        {"alpha": (0.5, 0.5)},
        {"pair": [0.5, 0.5]},
        {"pair": (1, 0.5)},
        {"pair": torch.tensor(0.5)},
        {"pair": torch.ones(3)},
        {"pair": torch.ones(2).half()},
        {"reduction": "none", "r": r[0], "y": y[0]},
        {"reduction": "none", "z": z[..., None], "t": t[:, None]},
        {"reduction": "average"},
        {"reduction": ["mean"]},
        {"t": torch.softmax(z, 1).to_sparse()},
        {"smoothing": 1.5},
        {"smoothing": -0.5},
        {"smoothing": float("nan")},
        {"smoothing": torch.tensor(0.1)},
        {"smoothing": "0.1"},
        {"class_weight": torch.zeros(3)},
        {"class_weight": weight[:2]},
        {"class_weight": weight.double(), "t": torch.softmax(z, 1)},
        {"class_weight": weight.long(), "t": torch.softmax(z, 1)},
        {"class_weight": weight.clone().requires_grad_()},
        {"class_weight": [1.0, 1.0, 1.0]},
    ):
        assert plain(**changes) is None, changes
    ignored = t.masked_fill(torch.arange(len(t)) == 0, -100)
    assert plain(t=ignored) is not None
    assert plain(t=ignored, z=z.masked_fill((ignored < 0)[:, None], torch.nan)) is None


def test_a_transform_leaves_no_tensor_of_its_own():
    """The constant that a weight becomes is kept from call to call."""
    r, z, y, t = batch()
    native._known_constant.cache_clear()
    torch.func.grad(lambda z: combined_loss(r, z, y, t, alpha=0.140625))(z)
    constant = native._constant(1 - 0.140625, torch.float32)
    assert not torch._C._functorch.is_functorch_wrapped_tensor(constant)


def test_no_function_of_ours_is_in_the_graph():
    r, z, y, t = batch()
    loss = combined_loss(r.requires_grad_(), z.requires_grad_(), y, t)
    assert type(loss.grad_fn).__name__ == "AddBackward0"


def test_it_may_be_differentiated_twice():
    r, z, y, t = batch()
    z = z.double().requires_grad_()

    def gradient(z):
        loss = combined_loss(r, z, y, t)
        return torch.autograd.grad(loss, z, create_graph=True)[0]

    assert torch.autograd.gradcheck(gradient, [z])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_a_position_without_a_label_does_not_count(ignore_index, poison):
    r, z, y, t = batch(n=6)
    t = t.masked_fill(t == 1, 0)
    t[2] = ignore_index
    z[2] = poison
    kept = torch.arange(6) != 2
    z.requires_grad_()
    _, ce = task_losses(r, z, y, t, ignore_index=ignore_index)
    _, right = task_losses(r[kept], z[kept], y[kept], t[kept])
    assert backend_of(r, z, y, t, ignore_index=ignore_index) == "native"
    torch.testing.assert_close(ce, right, rtol=torch.finfo(ce.dtype).eps * 4, atol=0)
    (gradient,) = torch.autograd.grad(ce, z)
    assert not gradient[2].any()
    assert gradient[kept].isfinite().all()


@pytest.mark.parametrize(("empty", "loss"), [("nan", float("nan")), ("zero", 0.0)])
def test_nothing_labelled(empty, loss):
    r, z, y, t = batch()
    z.fill_(float("nan")).requires_grad_()
    _, ce = task_losses(r, z, y, torch.full_like(t, -100), empty=empty)
    assert ce.item() == pytest.approx(loss, nan_ok=True)
    assert not torch.autograd.grad(ce, z)[0].any()


def test_an_index_outside_the_classes_is_named():
    r, z, y, t = batch(c=3)
    for index in (3, -1):
        t[0] = index
        with pytest.raises(IndexError, match=rf"classification_targets .* {index}, .* 3 classes"):
            combined_loss(r, z, y, t)


def test_what_inference_mode_made_can_be_trained_with():
    """The constant that a weight becomes is kept from call to call."""
    r, z, y, t = batch()
    with torch.inference_mode():
        inside = combined_loss(r, z, y, t, alpha=0.140625)
    outside = combined_loss(r.requires_grad_(), z.requires_grad_(), y, t, alpha=0.140625)
    outside.backward()
    assert torch.equal(inside, outside)


def test_components():
    spec, tensors = LossSpec(weights=(0.25, 2.0)), LossTensors(*batch())
    outcome = native.forward(spec, tensors, Needs(False, False, True))
    mse, ce = Components(*outcome.components)
    assert torch.equal(outcome.loss, torch.add(ce * 2.0, mse, alpha=0.25))
    assert native.forward(spec, tensors, Needs(False, False, False)).components is None


def test_weights_beyond_float32_are_infinite():
    """No operator may refuse one."""
    r, z, y, t = batch()
    assert combined_loss(r, z, y, t, loss_weights=(1e39, 1e39)).item() == float("inf")
