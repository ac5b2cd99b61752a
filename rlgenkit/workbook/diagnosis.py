"""What is wrong with an answer, in words: shapes, signs, means for sums, factors, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """Of one call: outputs, gradients of the arguments that want them, lengths of the inputs."""

    outputs: list[Any]
    gradients: list[Tensor]
    sizes: set[int]


def same(a: Sequence[Answer], b: Sequence[Answer], tolerance: float) -> bool:
    """Whether two functions gave equal outputs and gradients in all trials."""
    return all(
        _all_close(x.outputs, y.outputs, tolerance)
        and _all_close(x.gradients, y.gradients, tolerance)
        for x, y in zip(a, b)
    )


def difference(mine: Sequence[Answer], right: Sequence[Answer], tolerance: float) -> str:
    """How the answers of the trials differ from the right ones, as one clause."""
    a, b = mine[0].outputs, right[0].outputs
    if len(a) != len(b):
        return f"it returns {_count(len(a))}, expected {_count(len(b))}"
    if [_kind(x) for x in a] != [_kind(x) for x in b]:
        return _other_shape(a, b)
    for k in range(len(b)):
        pairs = [(x.outputs[k], y.outputs[k]) for x, y in zip(mine, right)]
        if not all(_close(*pair, tolerance) for pair in pairs):
            which = "" if len(b) == 1 else f"value {k + 1} of {len(b)}: "
            return which + _values(pairs, right, tolerance)
    return _gradients(mine, right, tolerance)


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return bool(type(a) is type(b) and a == b)
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def _all_close(a: Sequence[Any], b: Sequence[Any], tolerance: float) -> bool:
    return len(a) == len(b) and all(_close(x, y, tolerance) for x, y in zip(a, b))


def _kind(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _count(n: int) -> str:
    return "one value" if n == 1 else f"{n} values"


def _shape(value: Any) -> str:
    """A shape in words: "a single number", "6 numbers", "a 4 x 5 table"."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.dim() < 2:
        return f"{len(value)} numbers in a row" if value.dim() else "a single number"
    return f"a {' x '.join(map(str, value.shape))} {'table' if value.dim() == 2 else 'tensor'}"


def _other_shape(a: list[Any], b: list[Any]) -> str:
    k = next(k for k in range(len(b)) if _kind(a[k]) != _kind(b[k]))
    what = "it returns" if len(b) == 1 else f"value {k + 1} of {len(b)} is"
    said = f"{what} {_shape(a[k])}, expected {_shape(b[k])}"
    if isinstance(a[k], Tensor) and isinstance(b[k], Tensor):
        if a[k].dim() == b[k].dim() == 2 and a[k].shape == b[k].shape[::-1]:
            return f"{said}: rows and columns are exchanged"
        if a[k].dim() > b[k].dim() == 0:
            return f"{said}: a mean or a sum is missing at the end"
    return said


def _values(pairs: list[tuple[Any, Any]], right: Sequence[Answer], tolerance: float) -> str:
    if not isinstance(pairs[0][1], Tensor):
        a, b = next(p for p in pairs if not _close(*p, tolerance))
        return f"{a!r}, expected {b!r}"
    pairs = [(a.double(), b.double()) for a, b in pairs]
    if any(a.isnan().any() and not b.isnan().any() for a, b in pairs):
        return "it holds nan (not a number), for example from 0/0 or the logarithm of 0"
    a, b = next(p for p in pairs if not _close(*p, tolerance))
    reason = _pattern(pairs, right, tolerance)
    a, b = a.flatten(), b.flatten()
    apart = (a - b).abs().nan_to_num(float("inf"))
    k = int(apart.masked_fill((a == b) | a.isnan() & b.isnan(), 0.0).argmax())
    at = f"entry {k} is" if len(a) > 1 else "it is"
    return f"{reason}{at} {a[k].item():.4g}, expected {b[k].item():.4g}"


def _pattern(pairs: list[tuple[Tensor, Tensor]], right: Sequence[Answer], tolerance: float) -> str:
    """A clause that explains all trials at once, with its colon; "" where none does."""

    def always(change) -> bool:
        return all(_close(change(a, k), b, tolerance) for k, (a, b) in enumerate(pairs))

    if always(lambda a, k: -a):
        return "the sign is wrong: "
    for size in sorted(set.intersection(*(answer.sizes for answer in right))):
        if always(lambda a, k: a * size):
            return f"a mean where a sum belongs (over {size}): "
        if always(lambda a, k: a / size):
            return f"a sum where a mean belongs (over {size}): "
    factor = _ratio(*pairs[0])
    if factor and always(lambda a, k: a / factor):
        return f"off by a constant factor of {factor:.4g}: "
    shift = (pairs[0][0] - pairs[0][1]).mean().item()
    if always(lambda a, k: a - shift):
        return f"off by a constant of {shift:+.4g}: "
    if all(_close(a.flatten().sort()[0], b.flatten().sort()[0], tolerance) for a, b in pairs):
        return "the right numbers in the wrong order: "
    if all(a.dim() == 2 and _close(a.T, b, tolerance) for a, b in pairs):
        return "rows and columns are exchanged: "
    return ""


def _ratio(a: Tensor, b: Tensor) -> float:
    """mine over right where right is largest; 0 where there is no such number."""
    a, b = a.flatten(), b.flatten()
    k = int(b.abs().argmax())
    ratio = (a[k] / b[k]).item() if b[k] != 0 else 0.0
    return ratio if abs(ratio) < 1e9 else 0.0


def _gradients(mine: Sequence[Answer], right: Sequence[Answer], tolerance: float) -> str:
    """The values are right; what is wrong with the gradients."""
    for k, wanted in enumerate(right[0].gradients):
        found = mine[0].gradients[k]
        if _close(found, wanted, tolerance):
            continue
        which = f"the values are right, the gradient of tensor {k + 1} is not: "
        if wanted.abs().max() == 0:
            return which + "it must be zero here, so something must be detached"
        if found.abs().max() == 0:
            return which + "none arrives, so something is detached that must not be"
        return which + "something is detached, or not detached, that should be the other way round"
    return "it differs on some of the random inputs"
