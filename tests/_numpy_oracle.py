"""The combined loss and its gradients as loops over NumPy scalars, one element at a time.

Written from the definition alone: it uses neither PyTorch nor any array operation beyond indexing.
Sums are kept in `longdouble`, which is wider than float64 on x86 and never narrower.

    q'_c = class_weight_c · ((1-ε)·target_c + ε/K)        loss = -Σ_c q'_c · log p_c
    d loss/dz_c = p_c · Σ q' - q'_c                       d (r-y)²/dr = 2·(r-y)

over the K classes that the mask leaves. A target on another class makes the loss infinite; the
gradient of such a class is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Wide = np.longdouble


class Expected(NamedTuple):
    """The loss, its components, and the gradients of Σ upstream·loss.

    Of each also the `terms`: the same sum with every term's absolute value, which says how large
    the numbers were that a backend had to round on the way.
    """

    loss: np.ndarray  # () or (N,)
    regression: np.ndarray
    classification: np.ndarray
    r: np.ndarray
    z: np.ndarray
    weights: np.ndarray  # (2,): of (w_reg, w_cls)


class Options(NamedTuple):
    """The options of the loss, by the names that `combined_loss` gives them."""

    class_weight: np.ndarray | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: str = "mean"
    class_mask: np.ndarray | None = None  # in the shape of z
    regression_weight: np.ndarray | None = None  # in the shape of r
    classification_weight: np.ndarray | None = None  # (N, d1, ...)
    regression_normalizer: float | None = None
    classification_normalizer: float | None = None
    nan_targets: str = "propagate"
    empty: str = "nan"

    def of_mean(self, share: np.longdouble, normalizer: float | None) -> tuple[Any, Any]:
        """The factor of a sum of losses and the one of its gradient, under "mean"."""
        if normalizer is not None:
            return Wide(1) / Wide(normalizer), Wide(1) / Wide(normalizer)
        if share == 0:  # nothing labelled: the value for nothing, whatever the sum is
            return None, Wide(0)
        return Wide(1) / share, Wide(1) / share

    @property
    def of_nothing(self) -> np.longdouble:
        return Wide("nan") if self.empty == "nan" else Wide(0)


@np.errstate(invalid="ignore")  # an infinite loss of weight 0 is NaN
def combined(
    r: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    t: np.ndarray,
    weights: tuple[float, float],
    options: Options,
    upstream: np.ndarray,  # () or (N,)
) -> tuple[Expected, Expected]:
    """Everything that `combined_loss` computes, for one `grad_output`; and its terms."""
    one = z.ndim == 1 and options.reduction == "none"  # logits (C,): all of r is one sample
    regression = _regression(r, y, options, one)
    values, terms = _classification(z, t, options)
    samples = () if z.ndim == 1 or options.reduction != "none" else (z.shape[0],)
    up = np.broadcast_to(np.asarray(upstream, Wide), samples).reshape(-1)

    def gathered(head: tuple[list, np.ndarray], signed: bool) -> Expected:
        (mse, r_grad), (ce, z_grad) = regression, head
        w_reg, w_cls = (Wide(w) if signed else abs(Wide(w)) for w in weights)
        by = up if signed else np.abs(up)
        r_grad = r_grad if signed else np.abs(r_grad)
        loss = [w_reg * a + w_cls * b for a, b in zip(mse, ce, strict=True)]
        return Expected(
            np.array(loss).reshape(samples),
            np.array(mse).reshape(samples),
            np.array(ce).reshape(samples),
            _weighted(r_grad, w_reg, by).reshape(r.shape),
            _weighted(z_grad, w_cls, by).reshape(z.shape),
            np.array([sum(u * a for u, a in zip(by, part, strict=True)) for part in (mse, ce)]),
        )

    return gathered(values, True), gathered(terms, False)


def _weighted(gradient: np.ndarray, weight: np.longdouble, upstream: np.ndarray) -> np.ndarray:
    """Sample n times weight · upstream[n], or everything times the one upstream."""
    out = np.array(gradient)
    for index in np.ndindex(*out.shape):
        out[index] *= weight * upstream[index[0] if len(upstream) > 1 else 0]
    return out


def _regression(
    r: np.ndarray, y: np.ndarray, options: Options, one: bool
) -> tuple[list, np.ndarray]:
    """One value a sample (or one in all), and d value/dr."""
    per_sample = options.reduction == "none" and not one
    samples = r.shape[0] if per_sample else 1
    values, shares = [Wide(0)] * samples, [Wide(0)] * samples
    counts = [0] * samples
    gradient = np.zeros(r.shape, Wide)
    for index in np.ndindex(*r.shape):
        if options.nan_targets == "ignore" and np.isnan(y[index]):
            continue
        weight = Wide(1 if options.regression_weight is None else options.regression_weight[index])
        error = Wide(r[index]) - Wide(y[index])
        sample = index[0] if per_sample else 0
        values[sample] = values[sample] + weight * error * error
        shares[sample] = shares[sample] + weight
        counts[sample] += 1
        gradient[index] = 2 * weight * error
    if options.reduction == "sum":
        return values, gradient
    if options.reduction == "none":
        for index in np.ndindex(*r.shape):
            gradient[index] /= max(counts[index[0] if per_sample else 0], 1)
        return [v / max(count, 1) for v, count in zip(values, counts, strict=True)], gradient
    factor, of_gradient = options.of_mean(shares[0], options.regression_normalizer)
    value = options.of_nothing if factor is None else values[0] * factor
    return [value], gradient * of_gradient


def _classification(
    z: np.ndarray, t: np.ndarray, options: Options
) -> tuple[tuple[list, np.ndarray], tuple[list, np.ndarray]]:
    """One value a sample (or one in all) and d value/dz as (N, C, S); and the terms of both."""
    soft = t.dtype.kind == "f"
    n, c = (1, len(z)) if z.ndim == 1 else z.shape[:2]
    z = z.reshape(n, c, -1) if z.size else z.reshape(n, c, 0)
    s = z.shape[2]
    t = t.reshape(n, c, s) if soft else t.reshape(n, s)
    class_weight = np.ones(c) if options.class_weight is None else options.class_weight
    mask = np.ones(z.shape, bool) if options.class_mask is None else options.class_mask
    mask = mask.reshape(n, c, s)
    by_position = options.classification_weight
    by_position = np.ones((n, s)) if by_position is None else by_position.reshape(n, s)
    losses, loss_terms = np.zeros((n, s), Wide), np.zeros((n, s), Wide)
    gradient, gradient_terms = np.zeros((n, c, s), Wide), np.zeros((n, c, s), Wide)
    shares = np.zeros((n, s), Wide)  # what each position adds to the denominator of "mean"
    labelled = np.zeros((n, s), int)
    for i, j in np.ndindex(n, s):
        if soft:
            target = [Wide(t[i, k, j]) for k in range(c)]
        elif int(t[i, j]) == options.ignore_index:
            continue
        else:
            target = [Wide(k == int(t[i, j])) for k in range(c)]
        labelled[i, j] = 1
        weight = Wide(by_position[i, j])
        shares[i, j] = weight * Wide(1 if soft else class_weight[int(t[i, j])])
        loss, terms, pull, push = _position(
            [Wide(z[i, k, j]) for k in range(c)],
            target,
            class_weight,
            options.label_smoothing,
            [bool(mask[i, k, j]) for k in range(c)],
        )
        losses[i, j], loss_terms[i, j] = weight * loss, weight * terms
        for k in range(c):
            gradient[i, k, j] = weight * (pull[k] - push[k])
            gradient_terms[i, k, j] = weight * (pull[k] + push[k])

    def reduced(losses: np.ndarray, gradient: np.ndarray) -> tuple[list, np.ndarray]:
        if options.reduction == "sum":
            return [sum(losses.flat, Wide(0))], gradient
        if options.reduction == "none":
            counts = [Wide(max(sum(row), 1)) for row in labelled]
            values = [sum(row) / count for row, count in zip(losses, counts, strict=True)]
            shares_of = [part / count for part, count in zip(gradient, counts, strict=True)]
            return values, np.array(shares_of)
        factor, of_gradient = options.of_mean(
            sum(shares.flat, Wide(0)), options.classification_normalizer
        )
        if factor is None:
            return [options.of_nothing], np.zeros_like(gradient)
        return [sum(losses.flat, Wide(0)) * factor], gradient * of_gradient

    return reduced(losses, gradient), reduced(loss_terms, gradient_terms)


def _position(
    z: list, target: list, class_weight: np.ndarray, smoothing: float, mask: list[bool]
) -> tuple[np.longdouble, np.longdouble, list, list]:
    """The loss of one row of logits, its terms, and the gradient's two parts, p·Σq' and q'."""
    possible = [value for value, allowed in zip(z, mask, strict=True) if allowed]
    even = Wide(smoothing) / max(len(possible), 1)
    q = [
        Wide(w) * ((1 - Wide(smoothing)) * share + (even if allowed else 0))
        for w, share, allowed in zip(class_weight, target, mask, strict=True)
    ]
    mass = sum(q)
    top = max(possible, default=Wide(0))
    total = sum((np.exp(value - top) for value in possible), Wide(0))
    log_total = np.log(total) if possible else Wide(0)
    loss = terms = Wide(0)
    pull, push = [Wide(0)] * len(z), [Wide(0)] * len(z)
    for k, (share, value) in enumerate(zip(q, z, strict=True)):
        if mask[k]:
            pull[k], push[k] = np.exp(value - top) / total * mass, share
        if share and not mask[k]:
            loss, terms = loss + share * Wide("inf"), Wide("inf")
        elif share:  # a class without a target adds nothing, however unlikely it is
            loss += share * (log_total - (value - top))
            # A relative error in the sum under the logarithm is an absolute one of log_total: + 1.
            terms += share * (log_total + 1 + abs(value - top))
    return loss, terms, pull, push
