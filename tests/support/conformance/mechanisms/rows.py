"""What rows a loss is given."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from support.conformance.grid import mechanism
from support.conformance.subject import Call, How, MismatchError, NotRun, Subject, check, close, compare, measured

shaped = partial(mechanism, "Rows: views, storage and gradients")
sized = partial(mechanism, "Rows: how many")
typed = partial(mechanism, "Rows: dtypes")
refused = partial(mechanism, "Rows that no loss can take", may_refuse=True)


# --- Which rows carry a gradient. --------------------------------------------------------------------------------------------


def without_gradient(subject: Subject, which: tuple[int, ...], mode: Callable[[], object]) -> None:
    """Rows made under a mode, in place of detached clones of them."""

    def made(inside: bool) -> How:
        def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
            views = [z0, z1]
            for i in which:
                if inside:
                    with mode():
                        views[i] = views[i] * 1
                else:
                    views[i] = views[i].detach().clone()
            return call(*views)

        return how

    check(subject, made(True), plain=made(False))


@shaped()
def keys_made_in_inference_mode(subject: Subject) -> None:
    """The second view made under `torch.inference_mode`."""
    without_gradient(subject, (1,), torch.inference_mode)


@shaped()
def queries_made_in_inference_mode(subject: Subject) -> None:
    """The first view made under `torch.inference_mode`."""
    without_gradient(subject, (0,), torch.inference_mode)


@shaped()
def both_made_in_inference_mode(subject: Subject) -> None:
    """Both views made under `torch.inference_mode`."""
    without_gradient(subject, (0, 1), torch.inference_mode)


@shaped()
def keys_made_in_no_grad(subject: Subject) -> None:
    """The second view made under `torch.no_grad`."""
    without_gradient(subject, (1,), torch.no_grad)


@shaped()
def queries_made_in_no_grad(subject: Subject) -> None:
    """The first view made under `torch.no_grad`."""
    without_gradient(subject, (0,), torch.no_grad)


@shaped()
def called_in_no_grad(subject: Subject) -> None:
    """The call under `torch.no_grad`."""
    called_under(subject, torch.no_grad)


@shaped()
def called_in_inference_mode(subject: Subject) -> None:
    """The call under `torch.inference_mode`, and a training step after it."""
    called_under(subject, torch.inference_mode)


def called_under(subject: Subject, mode: Callable[[], object]) -> None:
    loss = subject.built()
    z0, z1 = subject.views()
    with mode():
        value = subject.call(loss, z0.detach(), z1.detach())
    if value.requires_grad:
        raise MismatchError("the value requires a gradient")
    close("value", value, measured(subject, subject.built(), *subject.views()).value)
    compare_after(subject, loss)


def compare_after(subject: Subject, loss: object) -> None:
    """A training step after the mechanism is a training step after a call of detached rows."""
    other = subject.built()
    with torch.no_grad():
        subject.call(other, *(z.detach() for z in subject.views()))
    compare(measured(subject, loss, *subject.views(seed=1)), measured(subject, other, *subject.views(seed=1)))


@shaped()
def toggled_gradient(subject: Subject) -> None:
    """`requires_grad` switched off and on between calls."""
    loss, plain = subject.built(), subject.built()
    for wanted in (True, False, True):
        z0, z1 = (z.detach().requires_grad_(wanted) for z in subject.views())
        a, b = (z.detach().clone().requires_grad_(wanted) for z in subject.views())
        compare(measured(subject, loss, z0, z1), measured(subject, plain, a, b))


# --- How rows lie in memory. -------------------------------------------------------------------------------------------------


def laid_out(subject: Subject, change: Callable[[Tensor], Tensor]) -> None:
    check(subject, lambda call, z0, z1: call(change(z0), change(z1)))


@shaped()
def transposed(subject: Subject) -> None:
    """Rows that are a transposed matrix."""
    laid_out(subject, lambda z: z.t().contiguous().t())


@shaped()
def strided(subject: Subject) -> None:
    """Rows that are every other column of a matrix."""
    laid_out(subject, lambda z: z.repeat_interleave(2, dim=1)[:, ::2])


@shaped()
def halves_of_one_batch(subject: Subject) -> None:
    """Both views as halves of one batch."""
    check(subject, lambda call, z0, z1: call(*torch.cat([z0, z1]).chunk(2)))


@shaped()
def interleaved_batch(subject: Subject) -> None:
    """Both views as every other row of one batch."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        batch = torch.stack([z0, z1], dim=1).flatten(0, 1)
        return call(batch[::2], batch[1::2])

    check(subject, how)


@shaped()
def expanded(subject: Subject) -> None:
    """Rows expanded from one row."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        return call(z0, z1[:1].expand_as(z1))

    check(subject, how, plain=lambda call, z0, z1: call(z0, z1[:1].repeat(len(z1), 1)))


@shaped()
def same_tensor_twice(subject: Subject) -> None:
    """One tensor as both views."""
    check(subject, lambda call, z0, z1: call(z0, z0), plain=lambda call, z0, z1: call(z0 * 1, z0 * 1))


class Rows(Tensor):
    """Rows of another class, as libraries have them."""


@shaped()
def tensor_subclass(subject: Subject) -> None:
    """Rows of a subclass of `torch.Tensor`."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        return call(z0.as_subclass(Rows), z1.as_subclass(Rows)).as_subclass(Tensor)

    check(subject, how)


@shaped()
def parameters_as_rows(subject: Subject) -> None:
    """Rows that are an `nn.Parameter`."""
    check(subject, rows=lambda: [nn.Parameter(z.detach()) for z in subject.views()])


# --- How many rows. ----------------------------------------------------------------------------------------------------------


def against_float64(subject: Subject, number: int, loss: object = None) -> None:
    """Against the plain call in float64."""
    expected = measured(subject, subject.built(), *subject.views(number, dtype=torch.float64))
    found = measured(subject, loss or subject.built(), *subject.views(number))
    compare(found._replace(buffers={}), expected._replace(buffers={}), tolerance=2e-5)


@sized()
def no_rows(subject: Subject) -> None:
    """No rows: 0, with a gradient."""
    found = measured(subject, subject.built(), *subject.views(0))
    attached(subject, 0)
    close("value", found.value.double(), torch.zeros((), dtype=torch.float64))


@sized()
def one_row(subject: Subject) -> None:
    """One row: a mean over no negatives is 0, the rest of the formula counts."""
    z0, z1 = subject.views(1)
    found = measured(subject, subject.built(), z0, z1)
    attached(subject, 1)
    if subject.alone is None:  # the mean of two equal queries is the value of one
        doubled = [torch.cat([z, z]).detach() for z in (z0, z1)]
        close("value", found.value, subject.call(subject.built(), *doubled).detach())
        return
    rows = [z.detach().requires_grad_() for z in (z0, z1)]
    value = subject.alone(torch.cosine_similarity(*rows).squeeze())
    close("value", found.value, value.detach(), tolerance=1e-4)
    for name, gradient in zip(("z0", "z1"), torch.autograd.grad(value, rows), strict=True):
        close(f"gradient by {name}", found.gradients[name], gradient, tolerance=1e-4)


def attached(subject: Subject, number: int) -> None:
    """Whether both views get a finite gradient from so few rows, so that nothing waits for one."""
    z0, z1 = subject.views(number)
    value = subject.call(subject.built(), z0, z1)
    if not value.requires_grad:
        raise MismatchError("the value is not attached to the graph")
    value.backward()
    if z0.grad is None:
        raise MismatchError("no gradient by z0")
    for z in (z0, z1):
        if z.grad is not None and not z.grad.isfinite().all():
            raise MismatchError("the gradient is not finite")


@sized()
def last_small_batch(subject: Subject) -> None:
    """A last batch of two rows after a full one."""
    loss, plain = subject.built(), subject.built()
    for number in (None, 2, None):
        found = measured(subject, loss, *subject.views(number))
        expected = measured(subject, plain, *subject.views(number, dtype=torch.float64))
        compare(found._replace(buffers={}), expected._replace(buffers={}), tolerance=1e-4)


@sized()
def odd_numbers(subject: Subject) -> None:
    """3, 37 and 211 rows, which nothing divides."""
    for number in (3, 37, 211):
        against_float64(subject, number)


# --- Dtypes. -----------------------------------------------------------------------------------------------------------------


def in_dtypes(subject: Subject, first: torch.dtype, second: torch.dtype, tolerance: float) -> None:
    """Against the plain call on the same rounded rows in float32."""
    z0, z1 = (z.detach().to(dtype) for z, dtype in zip(subject.views(), (first, second), strict=True))
    found = measured(subject, subject.built(), z0.requires_grad_(), z1.requires_grad_())
    rows = [z.detach().to(torch.promote_types(z.dtype, torch.float32)).requires_grad_() for z in (z0, z1)]
    expected = measured(subject, subject.built(), *rows)
    compare(found, expected, tolerance)


@typed()
def half(subject: Subject) -> None:
    """fp16 rows."""
    in_dtypes(subject, torch.float16, torch.float16, 4e-3)


@typed()
def bfloat16(subject: Subject) -> None:
    """bf16 rows."""
    in_dtypes(subject, torch.bfloat16, torch.bfloat16, 3e-2)


@typed()
def half_and_float(subject: Subject) -> None:
    """fp16 rows in one view, fp32 in the other."""
    in_dtypes(subject, torch.float16, torch.float32, 4e-3)


@typed()
def half_and_bfloat16(subject: Subject) -> None:
    """fp16 rows in one view, bf16 in the other."""
    in_dtypes(subject, torch.float16, torch.bfloat16, 3e-2)


@typed()
def double(subject: Subject) -> None:
    """float64 rows, and a float64 result."""
    found = measured(subject, subject.built(), *subject.views(dtype=torch.float64))
    if found.value.dtype != torch.float64:
        raise MismatchError(f"the value is {found.value.dtype}")
    compare(found, measured(subject, subject.built(), *subject.views()), tolerance=2e-5)


# --- Rows that must be refused, or counted as what they hold. -----------------------------------------------------------------


def like_floats(subject: Subject, change: Callable[[Tensor], Tensor]) -> None:
    """An error that names the argument, or what the rows as floats give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about states of sparse layouts
        try:
            changed = [change(z.detach()) for z in subject.views()]
            floats = [(z.to_dense() if z.layout != torch.strided else z).float() for z in changed]
        except (RuntimeError, NotImplementedError) as error:
            raise NotRun(f"torch {torch.__version__.split('+')[0]}: {error}") from error
        value = subject.call(subject.built(), *changed)
        expected = subject.call(subject.built(), *floats)
    close("value", value.float(), expected)


@refused()
def integer(subject: Subject) -> None:
    """Integer rows."""
    like_floats(subject, lambda z: (4 * z).long())


@refused()
def boolean(subject: Subject) -> None:
    """Boolean rows."""
    like_floats(subject, lambda z: z > 0)


@refused()
def complex_rows(subject: Subject) -> None:
    """Complex rows."""
    subject.call(subject.built(), *(z.detach().to(torch.complex64) for z in subject.views()))
    raise MismatchError("complex rows are taken")


@refused()
def sparse(subject: Subject) -> None:
    """Sparse rows (COO)."""
    like_floats(subject, lambda z: z.to_sparse())


@refused()
def compressed(subject: Subject) -> None:
    """Sparse rows (CSR)."""
    like_floats(subject, lambda z: z.to_sparse_csr())


@refused()
def fp8(subject: Subject) -> None:
    """fp8 rows (E4M3)."""
    like_floats(subject, lambda z: z.to(torch.float8_e4m3fn))


@refused()
def fp8_wide(subject: Subject) -> None:
    """fp8 rows (E5M2)."""
    like_floats(subject, lambda z: z.to(torch.float8_e5m2))
