"""Any strides: the values are those of a contiguous copy, and nothing is copied to get them."""

import pytest
import torch
from _asserts import assert_matches, fused, launched, launches
from _cases import BF16, F16, PLACES, REDUCTIONS, TRITON_PLACES, Case

import fused_loss
from fused_loss.kernels import layout

EXACT = (("NC", (4, 2), (4, 5)), ("NCd", (3, 2, 2), (3, 5, 4)), ("NCd", (2, 3, 2, 2), (2, 5, 3, 2)))


def transposed(x):
    """The samples innermost in memory: logits stored as (C, N)."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() > 1 else x


def classes_last(x):
    """Dimension 1 innermost in memory, as channels_last has it."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x


def spaced(x):
    """Every second element of a larger tensor, from an offset; its last dimension's stride is 2."""
    if x.dim() == 0:
        return x
    room = x.new_full((x.shape[0] + 1, *x.shape[1:-1], 2 * x.shape[-1]), 99)[1:]
    return room[..., ::2].copy_(x) if x.dim() > 1 else x.new_full((2 * len(x),), 99)[::2].copy_(x)


def rows_apart(x):
    """A slice of a wider tensor: its rows do not follow one another."""
    if x.dim() < 2:
        return spaced(x)
    wide = x.new_full((x.shape[0], x.shape[1] + 3, *x.shape[2:]), 99)
    return wide[:, 2 : 2 + x.shape[1]].copy_(x)


def expanded(x):
    """One sample, stride 0, for all."""
    return x[:1].expand(x.shape) if x.dim() else x


def all_one(x):
    """One element, stride 0 everywhere."""
    return x.reshape(-1)[:1].reshape([1] * x.dim()).expand(x.shape)


SEEN = [transposed, classes_last, spaced, rows_apart, expanded, all_one]


def laid_out(problem, way):
    keywords = {
        name: way(value) if torch.is_tensor(value) and value.dim() else value
        for name, value in problem.keywords.items()
    }
    r, z, y, t, grad_output = (
        way(x) for x in (problem.r, problem.z, problem.y, problem.t, problem.grad_output)
    )
    weights = problem.weights
    if torch.is_tensor(keywords.get("loss_weights")):
        weights = tuple(keywords["loss_weights"].tolist())
    return problem._replace(
        r=r, z=z, y=y, t=t, keywords=keywords, weights=weights, grad_output=grad_output
    )


CASES = [
    Case(reduction, name, targets, True, 0.25, "pair-tensor", "other", shapes=(r, z))
    for name, r, z in EXACT
    for reduction, targets in (
        ("mean", "hard-100"),
        ("sum", "soft"),
        ("none", "hard-100"),
        ("none", "soft"),
    )
]


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("way", SEEN)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{case.shapes[1]}")
def test_value_and_gradients(case, way, backend, device):
    problem = laid_out(case.problem(device), way)
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


@pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)
@pytest.mark.parametrize("way", [transposed, classes_last, rows_apart, expanded])
@pytest.mark.parametrize(("reduction", "targets"), [("mean", "soft"), ("none", "hard-100")])
@pytest.mark.parametrize("shape", EXACT[:2], ids=str)
def test_nothing_is_copied(shape, reduction, targets, way, backend, device):
    plain = Case(reduction, targets=targets, shapes=shape[1:]).problem(device)
    problem = laid_out(plain, way)
    if way is classes_last:  # this is how logits are laid out, not predictions
        problem = problem._replace(r=plain.r, y=plain.y)
    launched(problem)


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_dimensions_without_a_single_stride(reduction, backend, device):
    """(N, C, 3, 2) of which the last dimension is a slice: one stride does not span both."""
    case = Case(reduction, "NCd", shapes=((2, 3, 2), (2, 5, 3, 2)))
    problem = case.problem(device)
    problem = problem._replace(
        z=problem.z.new_zeros(2, 5, 3, 4)[..., :2].copy_(problem.z),
        t=problem.t.new_zeros(2, 3, 4)[..., :2].copy_(problem.t),
        r=problem.r.new_zeros(2, 3, 4)[..., :2].copy_(problem.r),
    )
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


@pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)
@pytest.mark.parametrize(
    ("classes", "apart", "others_apart", "unit"),
    [(8, 8, 8, 8), (8, 12, 8, 4), (8, 8, 12, 4), (8, 9, 8, 1), (8, 8, 9, 1), (12, 16, 24, 4),
     (10, 18, 10, 2), (9, 16, 16, 1), (16, 24, 16, 8), (16, 16, 16, 16)],
)  # fmt: skip
@pytest.mark.parametrize(("reduction", "targets"), [("mean", "soft"), ("none", "hard-100")])
def test_rows_of_any_length_and_distance(
    reduction, targets, classes, apart, others_apart, unit, backend, device
):
    """The kernel is told of no power of two that does not divide C and the distance of rows."""

    def spread(x, apart):
        return x.new_full((x.shape[0], apart), 99)[:, -classes:].copy_(x)

    case = Case(reduction, "NC", targets, mask="positions", shapes=((4, 2), (4, classes)))
    problem = case.problem(device)
    mask = {"class_mask": spread(problem.keywords["class_mask"], others_apart)}
    t = spread(problem.t, others_apart) if targets == "soft" else problem.t
    z = spread(problem.z, apart)
    problem = problem._replace(z=z, t=t, keywords=problem.keywords | mask)
    with launches() as log:
        actual = fused(problem, backend)
    assert {arguments["UNIT"] for arguments in log.arguments if "UNIT" in arguments} == {unit}
    assert_matches(problem, actual, fused(problem, "reference"))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("backend", "device"), PLACES)
def test_no_samples_with_gaps(reduction, backend, device):
    r = torch.zeros(0, 2, 4, device=device)[..., :3].requires_grad_()
    z = torch.zeros(0, 3, 2, 4, device=device)[..., :3].requires_grad_()
    t = torch.zeros(0, 2, 4, dtype=torch.int64, device=device)[..., :3]
    weight = torch.zeros(0, 2, 4, device=device)[..., :3]
    with fused_loss.backend(backend):
        loss = fused_loss.combined_loss(
            r, z, r.detach(), t, reduction=reduction, classification_weight=weight, empty="zero"
        )
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert not loss.any()
    gradients = torch.autograd.grad(loss.sum(), (r, z))
    assert [x.shape for x in gradients] == [r.shape, z.shape]


@pytest.mark.parametrize(("backend", "device"), PLACES)
def test_one_sample_of_predictions_that_lie_across(backend, device):
    """Logits (C,) under "none": all of r is one sample, and no single stride spans it."""
    problem = Case("none", "C", shapes=((3, 4), (5,))).problem(device)
    problem = problem._replace(r=problem.r.t().contiguous().t())
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


@pytest.mark.parametrize(("backend", "device"), PLACES)
def test_a_grad_output_without_a_single_stride(backend, device):
    """One a position, (N, d1, d2), in an order of its own: the same as laid out in a row."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, 4, generator=random).to(device).requires_grad_()
    t = torch.randint(5, (2, 3, 4), generator=random).to(device)
    upstream = torch.randn(4, 3, 2, generator=random).to(device).permute(2, 1, 0)
    assert layout.matrix(upstream).tensor is not upstream
    with fused_loss.backend(backend):
        loss = fused_loss.cross_entropy(z, t, reduction="none")
    in_a_row = upstream.contiguous()
    one, other = (
        torch.autograd.grad(loss, z, grad_output, retain_graph=True)[0]
        for grad_output in (upstream, in_a_row)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize(("dtype", "reduction"), [(BF16, "mean"), (F16, "none")])
@pytest.mark.parametrize("way", SEEN)
def test_half_types(reduction, way, dtype, backend, device):
    case = Case(reduction, "NCd", "hard-100", dtypes=(dtype, dtype))
    problem = laid_out(case.problem(device), way)
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("way", SEEN)
@pytest.mark.parametrize("shape", EXACT, ids=str)
def test_the_gradient_is_dense(shape, way, backend, device):
    """It fills its memory without a gap; Triton's lies as its logits do, where those are dense."""
    problem = laid_out(Case(shapes=shape[1:]).problem(device), way)
    found = fused(problem, backend)
    for gradient in (found["r"], found["z"]):
        assert torch.empty_like(gradient).stride() == gradient.stride()
        assert gradient.untyped_storage().nbytes() == gradient.numel() * gradient.element_size()
    if backend == "triton" and way in (transposed, classes_last):
        assert found["z"].stride() == torch.empty_like(problem.z).stride()


@pytest.mark.parametrize(("backend", "device"), PLACES)
def test_an_expanded_leaf_collects_the_gradients(backend, device):
    problem = Case().problem(device)
    row = problem.z[0]
    leaf = row.clone().requires_grad_()
    actual = fused(problem._replace(z=row.expand(4, 5)), backend)
    with fused_loss.backend(backend):
        loss = fused_loss.combined_loss(
            problem.r, leaf.expand(4, 5), problem.y, problem.t, **problem.keywords
        )
    loss.backward()
    assert torch.equal(leaf.grad, actual["z"].sum(0))


def test_matrix_and_rows_see_every_element():
    """Element (n, d) and (n, c, s) of the views lie where their strides say."""
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    for way in [*SEEN, torch.Tensor.contiguous]:
        laid = way(x)
        seen = layout.matrix(laid)
        strides = seen.stride_n, seen.stride_d
        as_matrix = seen.tensor.as_strided((2, 60), strides, seen.tensor.storage_offset())
        assert torch.equal(as_matrix.reshape(x.shape), laid)
        rows = layout.rows(laid)
        strides = rows.stride_n, rows.stride_c, rows.stride_s
        as_rows = rows.tensor.as_strided((2, 3, 20), strides, rows.tensor.storage_offset())
        assert torch.equal(as_rows.reshape(x.shape), laid)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((2, 3), (3, 1)), ((2, 3), (1, 2)), ((2, 3, 4), (12, 1, 3)), ((2, 0, 4), (4, 4, 1)),
     ((1, 3, 1), (7, 5, 9)), ((2, 3, 4), (0, 0, 0))],
)  # fmt: skip
def test_what_has_a_single_stride_is_not_copied(shape, stride):
    x = torch.zeros(100).as_strided(shape, stride)
    assert layout.rows(x).tensor is x
    for merged, seen in ((1, layout.matrix), (2, layout.rows)):
        gradient = layout.gradient_like(x, merged)
        assert gradient.shape == x.shape
        assert seen(gradient).tensor is gradient


@pytest.mark.parametrize(
    ("shape", "stride", "expected"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 3, 4), (12, 1, 3), True),
        ((1, 3, 1), (7, 1, 9), True),
        ((), (), True),
        ((2, 3), (4, 1), False),
        ((2, 3), (6, 2), False),
        ((2, 3), (0, 1), False),
    ],
)
def test_dense_is_without_gaps(shape, stride, expected):
    assert layout.dense(torch.zeros(100).as_strided(shape, stride)) is expected


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["r", "z", "y", "grad_output"])
def test_a_lazy_negative(name, reduction, backend, device):
    """The imaginary part of a conjugate: in memory lies the opposite of what the tensor says."""
    problem = Case(reduction, upstream="other").problem(device)
    lazy = torch.complex(problem.z.new_zeros(()), -getattr(problem, name)).conj().imag
    assert lazy.is_neg()
    actual, expected = fused(problem._replace(**{name: lazy}), backend), fused(problem, backend)
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key
