"""NT-Xent, and VRN with it, as one step of autograd: the gradient is computed with the value, and no N x N matrix is kept.

In eager mode that step is a plain ``autograd.Function``. Only torch.compile, which must not look inside, gets the operator
``varloss::nt_xent``: its dispatch would cost a fifth of the whole at N = 32, and its first call imports 900 modules.
"""

import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from varloss._core.numerics import full_precision, savable, symbol
from varloss._core.pairs import Gathered, TwoViews
from varloss._kernels import dense, gathered, gram, tiles, whole
from varloss._kernels.problem import Problem

# Up to this many similarities the whole matrix at once is faster than its tiles: with both kinds of negatives N = 181 on
# CPU. N = 1024 on a GPU is a guess: launches cost more there.
WHOLE_ELEMENTS = {"cpu": 2**17, "cuda": 2**22}

# A block of rows and its gradient have to stay on the chip.
TRITON_MAX_DIM = 256

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
# Value, gradient by both views' rows, gradient by both views' keys.
Computed = tuple[Tensor, Tensor | None, Tensor | None]
Dense = Callable[[Inputs], Tensor]
Gradients = tuple[Tensor | None, ...]


def nt_xent(
    z0: Tensor, z1: Tensor, problem: Problem, *, force_tiles: bool = False, others: Gathered | None = None
) -> Tensor:
    """The loss of checked inputs, a mean over local anchors. VRN's pairs must be among the negatives.

    ``others`` are the rows of all ranks; ``force_tiles`` takes memory linear in N at any N.
    """
    keys, offset = ((None, None), 0) if others is None else others[:2]
    inputs = (z0, z1, *keys)
    need_gradient = torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in inputs)
    if torch.compiler.is_compiling():  # never with VRN, see NTXentLoss
        temperature = symbol(problem.temperature, "cpu")  # on the host: read there without waiting for a device
        fixed = problem.temperature if temperature is None else 1.0
        given = (*inputs, temperature, offset, force_tiles, need_gradient, fixed, *problem[1:3])
        return _operator(*given)[0]  # type: ignore[no-any-return]
    compute = partial(_compute, offset=offset, force_tiles=force_tiles, problem=problem)
    if need_gradient:
        return _Fused.apply(*map(savable, inputs), compute, partial(_dense, problem, offset))  # type: ignore[no-any-return]
    return compute(inputs, need_gradient=False)[0]


def vrn(z0: Tensor, z1: Tensor, problem: Problem, closed: bool, formula: Dense) -> Tensor:
    """VRN alone of checked inputs, ``problem.vrn_weight`` times; ``formula`` is the same by autograd. Not for torch.compile."""

    def compute(inputs: Inputs, *, need_gradient: bool) -> Computed:
        routine = gram.value_and_gradient if closed else whole.vrn_value_and_gradient
        with full_precision(z0.device.type):
            return *routine(inputs[0], inputs[1], problem, need_gradient), None

    if torch.is_grad_enabled() and (z0.requires_grad or z1.requires_grad):
        return _Fused.apply(savable(z0), savable(z1), None, None, compute, formula)  # type: ignore[no-any-return]
    return compute((z0, z1, None, None), need_gradient=False)[0]


def _suits_triton(z0: Tensor, z1: Tensor, problem: Problem) -> bool:
    """Half-precision rows on an NVIDIA GPU with tensor cores for both half types; fp32 rows are cuBLAS's matter."""
    return (
        z0.is_cuda
        and z0.dtype == z1.dtype
        and z0.dtype in (torch.float16, torch.bfloat16)
        and z0.shape[1] <= TRITON_MAX_DIM
        and problem.fits_without_shift(torch.float32)
        and type(z0) in (Tensor, torch.nn.Parameter)  # fake tensors have nothing to launch on
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(z0.device) >= (8, 0)
        and find_spec("triton") is not None
    )


def _dtype_inside(z0: Tensor, z1: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(z0.dtype, z1.dtype), torch.float32)


def _compute(inputs: Inputs, *, offset: int, force_tiles: bool, problem: Problem, need_gradient: bool) -> Computed:
    z0, z1, k0, k1 = inputs
    with full_precision(z0.device.type):
        if k0 is not None and k1 is not None:
            return gathered.value_and_gradient((z0, z1), (k0, k1), offset, problem, need_gradient)
        similarities = z0.shape[0] ** 2 * {"cross": 1, "within": 2, "both": 4}[problem.negatives]
        small = similarities <= WHOLE_ELEMENTS.get(z0.device.type, WHOLE_ELEMENTS["cuda"])
        if not force_tiles and small and problem.fits_without_shift(_dtype_inside(z0, z1)):
            return *whole.value_and_gradient(z0, z1, problem, need_gradient), None
        if not force_tiles and _suits_triton(z0, z1, problem):
            found = _by_triton(z0, z1, problem, need_gradient)
            if found is not None:
                return *found, None
        return *tiles.value_and_gradient(z0, z1, problem, need_gradient), None


# Whether Triton has failed in this process: it is not asked again.
_triton_failed = False


def _by_triton(z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool) -> tuple[Tensor, Tensor | None] | None:
    """Value and gradient by the Triton kernels; None where Triton cannot compile or launch them on this machine.

    It needs a C compiler and Python's headers, which slim images lack, and a card may have less shared memory than those known.
    A training run must not end there.
    """
    global _triton_failed  # noqa: PLW0603  (a fact about the machine)
    if _triton_failed:
        return None
    try:
        from varloss._kernels import triton  # noqa: PLC0415  (Triton is not on every machine)

        if triton.is_supported():
            return triton.value_and_gradient(z0, z1, problem, need_gradient)
        reason = f"it is older than version {'.'.join(map(str, triton.OLDEST))}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    _triton_failed = True
    warnings.warn(
        "varloss does without its Triton kernels in this process, which are for large half-precision batches. The loss is the "
        f"same and takes longer. Triton cannot be used here: {reason}",
        stacklevel=2,
    )
    return None


def _backward(upstream: Tensor, inputs: Inputs, gradients: tuple[Tensor, Tensor | None], formula: Dense) -> Gradients:
    if torch.is_grad_enabled():
        return _differentiable(upstream, inputs, formula)
    z0, z1, k0, k1 = inputs
    gradient, key_gradient = gradients
    first, second = (gradient * upstream).unbind(0)
    first, second = first.to(z0.dtype), second.to(z1.dtype)
    if k0 is None or k1 is None or key_gradient is None:
        return first, second, None, None
    third, fourth = (key_gradient * upstream).unbind(0)
    return first, second, third.to(k0.dtype), fourth.to(k1.dtype)


class _Fused(torch.autograd.Function):
    """Two views and two or no keys, how to compute value and gradient, and the same value by autograd."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        inputs, compute, ctx.formula = arguments[:4], *arguments[4:]
        value, *gradients = compute(inputs, need_gradient=True)
        ctx.save_for_backward(*inputs, *gradients)
        return value  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: whoever packs them (checkpoints, offloading) unpacks them at each look
        return (*_backward(upstream, saved[:4], saved[4:], ctx.formula), None, None)


@torch.library.custom_op(
    "varloss::nt_xent",
    mutates_args=(),
    schema="(Tensor z0, Tensor z1, Tensor? k0, Tensor? k1, Tensor? changing, SymInt offset, bool force_tiles, "
    "bool need_gradient, float temperature, str negatives, bool decoupled) -> (Tensor, Tensor, Tensor)",
)
def _operator(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`_compute`; an operator cannot return None, so a gradient that is not there is an empty tensor."""
    inputs, (offset, force_tiles, need_gradient), problem = arguments[:4], arguments[5:8], _problem_of(arguments)
    value, *gradients = _compute(
        inputs, offset=offset, force_tiles=force_tiles, problem=problem, need_gradient=need_gradient
    )
    first, second = (value.new_empty(0) if g is None else g for g in gradients)
    return value, first, second


@_operator.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    z0, z1, k0, _, _, _, _, need_gradient = arguments[:8]
    value = z0.new_empty((), dtype=_dtype_inside(z0, z1))
    shapes = [(2, *z.shape) if need_gradient and z is not None else (0,) for z in (z0, k0)]
    return value, value.new_empty(shapes[0]), value.new_empty(shapes[1])


def _problem_of(arguments: tuple[Any, ...]) -> Problem:
    changing, (fixed, *rest) = arguments[4], arguments[8:]
    return Problem(fixed if changing is None else changing.item(), *rest)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.arguments = inputs[5:]
    ctx.save_for_backward(*inputs[:5], *output[1:])


def _operator_backward(ctx: Any, upstream: Tensor, *of_gradients: Tensor) -> tuple[Tensor | None, ...]:
    saved, (offset, force_tiles, need_gradient, fixed, *rest) = ctx.saved_tensors, ctx.arguments
    inputs, gradients = saved[:4], saved[5:]
    if not need_gradient:  # exported with rows that required none, and trained all the same
        again = (*saved[:5], offset, force_tiles, True, fixed, *rest)
        gradients = _operator(*again)[1:]
    problem = Problem(fixed if saved[4] is None else saved[4], *rest)
    found = _backward(upstream, inputs, gradients, partial(_dense, problem, offset))
    return (*found, *(None,) * 7)


_operator.register_autograd(_operator_backward, setup_context=_save)


def _differentiable(upstream: Tensor, inputs: Inputs, formula: Dense) -> Gradients:
    """The gradients once more by the dense formula, as a part of the graph: for ``create_graph=True``, at N x N memory."""
    # Views of the inputs rather than the inputs: the same tensor may have been given twice.
    given: Any = tuple(None if z is None else z.view_as(z) for z in inputs)
    wanted = [z for z in given if z is not None and z.requires_grad]
    found = iter(torch.autograd.grad(formula(given), wanted, upstream, create_graph=True))
    return tuple(next(found) if z is not None and z.requires_grad else None for z in given)


def _dense(problem: Problem, offset: int, inputs: Inputs) -> Tensor:
    z0, z1, k0, k1 = inputs
    others = None if k0 is None or k1 is None else Gathered((k0, k1), offset)
    views = TwoViews.of(z0, z1, others)
    value = dense.nt_xent(views, *problem[:3])
    if problem.has_vrn:
        value = value + problem.vrn_weight * dense.vrn(views, problem.target, 2, problem.pairs)
    return value
