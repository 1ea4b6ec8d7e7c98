"""Input checks that cost nothing on the device: types, dtypes, shapes and hyper-parameters.

A check of a number or a choice returns it.
What shapes decide raises here. What values decide (NaN rows, anchors without negatives) would make the host wait for the
device, so it is looked at only when a caller asks with ``check=True``.
"""

import operator
from collections.abc import Sequence
from typing import Literal, SupportsIndex, TypeVar, cast

import torch
from torch import Tensor

from varloss._core.numerics import lengths, savable, wide

Form = Literal["auto", "dense", "linear"]
"""How a loss is computed: by cost, as an N x N matrix under autograd, or in memory linear in N."""
FORMS: tuple[Form, ...] = ("auto", "dense", "linear")
MIN_TEMPERATURE = 1e-8
# What every device multiplies; fp8 is for storage.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_Choice = TypeVar("_Choice", bound=str)


def one_of(value: _Choice, allowed: Sequence[_Choice], name: str) -> _Choice:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    return value


def embeddings(*, mixed: bool = False, **named: Tensor) -> None:
    """Checks that all are floating-point matrices of one width on one device; float64 too, all or none, unless ``mixed``."""
    first_name, first = next(iter(named.items()))
    for name, z in named.items():
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(z).__name__}.")
        if not z.is_floating_point():
            raise TypeError(f"{name} must have a floating-point dtype; got {z.dtype}.")
        if z.dtype not in DTYPES:
            raise TypeError(
                f"{name} must have a dtype of 16, 32 or 64 bits; got {z.dtype}. Convert it: {name}.float()."
            )
        if z.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; got layout {z.layout}. Convert it: {name}.to_dense().")
        if z.ndim != 2:
            raise ValueError(f"{name} must be 2-D, one embedding a row; got shape {tuple(z.shape)}.")
        if z.shape[1] == 0:
            raise ValueError(f"{name} has embeddings of dimension 0: shape {tuple(z.shape)}.")
        if z.shape[1] != first.shape[1]:
            raise ValueError(
                f"{first_name} and {name} must have the same embedding dimension; "
                f"got {tuple(first.shape)} and {tuple(z.shape)}."
            )
        if z.device != first.device:
            raise ValueError(f"{first_name} and {name} must be on one device; got {first.device} and {z.device}.")
    if not mixed and len({z.dtype == torch.float64 for z in named.values()}) > 1:
        given = ", ".join(f"{name} {z.dtype}" for name, z in named.items())
        raise TypeError(f"either all embeddings must be float64 or none; got {given}.")


def alike(**named: Tensor) -> None:
    """Checks that two tensors hold one embedding each of the same samples, of any number."""
    embeddings(mixed=False, **named)  # said, or a type checker takes a tensor for it
    (name0, z0), (name1, z1) = named.items()
    if z0.shape != z1.shape:
        raise ValueError(f"{name0} and {name1} must have the same shape; got {tuple(z0.shape)} and {tuple(z1.shape)}.")


def rows_inside(rows: int, total: int, offset: int) -> None:
    if not 0 <= offset <= total - rows:
        raise ValueError(
            f"offset {offset} does not fit: {rows} local rows starting there must lie inside the {total} gathered keys."
        )


def ids(name: str, value: Tensor | None, like: Tensor, like_name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of integers; got {type(value).__name__}.")
    if value.dtype in (torch.uint16, torch.uint32, torch.uint64):
        value = value.long()  # torch sorts none of them; what wraps stays different
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype; got {value.dtype}.")
    if value.shape != like.shape[:1]:
        raise ValueError(
            f"{name} must hold one id for each row of {like_name}, shape ({like.shape[0]},); got {tuple(value.shape)}."
        )
    if value.device != like.device:
        raise ValueError(f"{name} and {like_name} must be on one device; got {value.device} and {like.device}.")
    return value


def temperature(value: float | Tensor) -> float | Tensor:
    """A number, or a tensor as :func:`scalar` makes it, where a temperature is learned.

    Negative temperatures are allowed, as in lightly: they turn the loss around.
    """
    number = scalar("temperature", value)
    if not isinstance(number, Tensor) and abs(number) < MIN_TEMPERATURE:
        raise ValueError(f"temperature must not be 0 (|temperature| >= {MIN_TEMPERATURE}); got {value}.")
    return number


def scalar(name: str, value: float | Tensor) -> float | Tensor:
    """A number, or a 0-dim tensor of at least fp32 of a tensor of one element, whose value is on the device."""
    if not isinstance(value, Tensor):
        return real(name, value)
    if value.numel() != 1:
        raise ValueError(f"{name} must be a single number; got a tensor of shape {tuple(value.shape)}.")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be a number or a floating-point tensor; got {value.dtype}.")
    return savable(wide(value).reshape(()))


def real(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            value = cast(float, value).__float__()
        except (AttributeError, TypeError, ValueError) as error:
            raise TypeError(f"{name} must be a number; got {type(value).__name__}.") from error
    if value - value != 0:  # math.isfinite looks at a value that torch.compile keeps as a symbol
        raise ValueError(f"{name} must be finite; got {value}.")
    return float(value)


def positive(name: str, value: float) -> float:
    number = real(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive; got {value}.")
    return number


def not_negative(name: str, value: float) -> float:
    number = real(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {value}.")
    return number


def whole(name: str, value: SupportsIndex, least: int) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer; got bool.")
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}.") from error
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {number}.")
    return number


def delta(num_samples: int | None, target: float | None) -> float:
    """The similarity that VRN pulls negatives towards: ``-1/(num_samples-1)`` or ``target`` itself."""
    if (num_samples is None) == (target is None):
        raise ValueError(
            "give exactly one of num_samples (the size n of the TRAINING set, for a target of -1/(n-1)) and "
            f"target (the target itself); got num_samples={num_samples} and target={target}."
        )
    if num_samples is not None:
        return -1.0 / (whole("num_samples", num_samples, 2) - 1)
    value = real("target", cast(float, target))
    if not -1.0 <= value <= 1.0:
        raise ValueError(f"target is a cosine similarity and must lie in [-1, 1]; got {value}.")
    return value


def exponent(value: float) -> float:
    """Checks the exponent of VRN: below 1 the gradient is infinite where a similarity meets its target."""
    number = real("exponent", value)
    if number < 1:
        raise ValueError(f"exponent must be at least 1; got {value}.")
    return number


def rows_are_sound(**named: Tensor) -> None:
    """``check=True``: raises for rows that are not finite or without a direction. Synchronises with the device."""
    for name, z in named.items():
        length = lengths(wide(z))
        lost = f"whose length leaves the range of {length.dtype}: they would count as rows of length zero."
        for unsound, what in (
            (~z.isfinite().all(dim=1), "with NaN or infinite entries."),
            ((z == 0).all(dim=1), "of length zero: they have no direction."),
            (length.isinf(), lost),
        ):
            if count := int(unsound.sum()):
                raise ValueError(f"{name} has {count} of {z.shape[0]} rows {what}")
