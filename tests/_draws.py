"""Any call of the loss, as hypothesis draws it: every option, every dtype, any strides."""

import torch
from _cases import BF16, F16, F32, F64, Problem
from hypothesis import strategies as st

DTYPES = st.sampled_from([F64, F32, BF16, F16])
INDICES = [torch.int64, torch.int32, torch.int16, torch.int8]  # these may be negative
INDICES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
ORDERS = ["rows", "samples innermost", "classes innermost", "spaced"]


def arranged(x, order):
    """The values of x in another order in memory."""
    if order == "spaced":
        return x.new_empty(*x.shape, 2)[..., 0].copy_(x)
    if order == "rows" or x.dim() < 2:
        return x.clone()
    place = 0 if order == "samples innermost" else 1
    return x.movedim(place, -1).contiguous().movedim(-1, place)


SPECIAL = [float("nan"), float("inf"), -float("inf")]


class Draws:
    """What the values of a problem are drawn from."""

    def __init__(self, draw):
        self.draw = draw
        self.random = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
        self.orders = self.of(ORDERS, ["rows"])

    def of(self, *values):
        return self.draw(st.sampled_from(values))

    def normal(self, shape, dtype, spread=1.0):
        x = torch.randn(shape, generator=self.random, dtype=F64) * spread
        return arranged(x.to(dtype), self.of(*self.orders))

    def uniform(self, shape, dtype):
        x = torch.rand(shape, generator=self.random, dtype=F64)
        return arranged(x.to(dtype), self.of(*self.orders))

    def where(self, shape, *shares):
        """True for about that share of the elements."""
        return torch.rand(shape, generator=self.random) < self.of(*shares)

    def spread(self, shape):
        """The shape, or one that spreads over it: some dimensions are 1."""
        return tuple(size if self.of(True, True, False) else 1 for size in shape)

    def weights(self, shape):
        """Eighths, exact in every dtype; at times 0, and at times expanded to the whole shape."""
        eighths = torch.randint(0, 25, self.spread(shape), generator=self.random) / 8
        weight = arranged(eighths.to(self.draw(DTYPES)), self.of(*self.orders)) * self.of(
            0, 1, 1, 1
        )
        return weight.expand(shape) if self.of(True, False) else weight

    def number(self, *values):
        value = self.of(*values)
        return torch.tensor(value, dtype=self.draw(DTYPES)) if self.of(True, False) else value

    def weighting(self, keywords):
        """Sixteenths as alpha or a pair, as numbers or a tensor."""
        w_reg, w_cls = self.of(0, 3, 5, 16) / 16, self.of(0, 8, 24) / 16
        if self.of(True, False):
            keywords["alpha"] = self.number(w_reg)
            return w_reg, 1 - w_reg
        pair = torch.tensor([w_reg, w_cls], dtype=self.draw(DTYPES))
        keywords["loss_weights"] = pair if self.of(True, False) else (w_reg, w_cls)
        return w_reg, w_cls


@st.composite
def problems(draw, fewest=1, classes=7, dimensions=2):
    """Any call: small tensors, every option, values from a seed; and whether some are special."""
    of = Draws(draw)
    n, c = draw(st.integers(1, 4)), draw(st.integers(fewest, classes))
    spatial, features = (draw(st.lists(st.integers(1, 3), max_size=dimensions)) for _ in range(2))
    r_dtype, z_dtype = draw(DTYPES), draw(DTYPES)
    loss_dtype = F64 if F64 in (r_dtype, z_dtype) else F32
    keywords = {"reduction": of.of("mean", "sum", "none"), "empty": of.of("nan", "zero")}
    batch = of.of((n,), (n,), (n,), (n,), ())  # (): logits (C,), one sample
    positions = (*batch, *spatial) if batch else ()
    other = () if not batch else batch if keywords["reduction"] == "none" else (of.of(n, n, 5),)
    r, y = (of.normal((*other, *features), r_dtype) for _ in range(2))
    z = of.normal((*batch, c, *positions[1:]), z_dtype, of.of(0.1, 3.0, 30.0))

    keywords["label_smoothing"] = of.of(0.0, 0.0, 0.1, 0.5, 1.0)
    keywords["nan_targets"] = of.of("propagate", "ignore", "ignore")
    keywords["inplace_gradient"] = of.of(False, True)
    if of.of(True, False):
        keywords["class_weight"] = of.weights((c,))
        keywords["class_weight"] = keywords["class_weight"].expand(c)
    if of.of(True, False):
        shape = of.of((c,), of.spread(z.shape))
        keywords["class_mask"] = arranged(of.where(shape, 0.3, 0.7, 0.95), of.of(*of.orders))
    if of.of(True, False):
        keywords["regression_weight"] = of.weights(r.shape)
    if of.of(True, False):
        keywords["classification_weight"] = of.weights(positions)
    if keywords["reduction"] == "mean":
        for name in ("regression_normalizer", "classification_normalizer"):
            if of.of(True, False, False):
                keywords[name] = of.number(3, 2.5)
    if of.of(True, False):
        t = of.uniform(z.shape, draw(DTYPES)) * of.where(z.shape, 0.6, 1.0)
    else:
        ignored = keywords["ignore_index"] = of.of(-100, 0, c - 1)
        t = torch.randint(0, c, positions, generator=of.random)
        t = t.masked_fill(of.where(t.shape, 0.0, 0.4, 1.0), ignored)
        t = arranged(t.to(of.of(*INDICES[: None if ignored >= 0 else 4])), of.of(*of.orders))
    if of.of(True, False):
        y[of.where(y.shape, 0.3, 1.0)] = float("nan")
    special = of.of(False, False, False, True)
    if special:
        place = of.of(r, z, y)
        place[of.where(place.shape, 0.2)] = of.of(*SPECIAL)
    shape = batch if keywords["reduction"] == "none" else ()
    upstream = torch.randn(shape, generator=of.random, dtype=F64).to(loss_dtype)
    return Problem(r, z, y, t, keywords, of.weighting(keywords), upstream), special
