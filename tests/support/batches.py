"""Batches that hypothesis draws: every precision, few or many rows, and rows that no loss was made for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from support import bounds

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# Precisions of the two views: float64 goes with itself alone.
DTYPES = [(F32, F32), (F64, F64), (BF16, BF16), (F16, F16), (F32, F16), (BF16, F32), (F16, BF16)]
# Lengths near the ends of a dtype's range, and beyond that of the rows that count.
LENGTHS = {
    F64: (1e-300, 1e-150, 1e-30, 1e30, 1e150, 1e300),
    F32: (1e-42, 1e-37, 1e-30, 1e30, 1e38),
    BF16: (1e-39, 1e-37, 1e-30, 1e30, 1e38),
    F16: (1e-7, 1e-4, 6e4),
}
SHAPES = ("normal", "normal", "one-hot", "equal", "opposite", "cluster")
HOSTILE = ("zero", "length", "duplicate", "huge entry")
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")


@dataclass
class Batch:
    """Two views, and a word on how they were made. ``blur`` is how far a computation's similarities may be off."""

    views: tuple[Tensor, Tensor]
    made: str
    exact: bool

    @property
    def rows(self) -> int:
        return len(self.views[0])

    @property
    def dim(self) -> int:
        return self.views[0].shape[1]

    @property
    def inside(self) -> torch.dtype:
        """The dtype of the computation."""
        return F64 if self.views[0].dtype == F64 else F32

    @property
    def blur(self) -> float:
        return 0.0 if self.exact else bounds.similarity_error(self.dim, torch.finfo(self.inside).eps)

    def __repr__(self) -> str:
        shown = [f"{z.tolist()} {z.dtype}" if z.numel() < 100 else f"{tuple(z.shape)} {z.dtype}" for z in self.views]
        return f"<{self.made}: {'; '.join(shown)}>"


def shaped(shape: str, rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """(2, rows, dim) in float64."""
    z = torch.randn(2, rows, dim, generator=generator, dtype=F64) * (1 + torch.arange(rows)).view(-1, 1)
    if shape == "equal":
        z = torch.randn(dim, generator=generator, dtype=F64).expand(2, rows, dim).clone()
    elif shape == "opposite":
        z[1] = -z[0]
    elif shape == "cluster":
        z = torch.randn(dim, generator=generator, dtype=F64) + 1e-6 * z
    elif shape == "one-hot":
        places = torch.randint(0, dim, (2, rows, 1), generator=generator)
        signs = 2.0 * torch.randint(0, 2, (2, rows, 1), generator=generator) - 1
        z = torch.zeros(2, rows, dim, dtype=F64).scatter(2, places, signs * z.abs().amax(2, keepdim=True))
    return z


def laid_out(z: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return z.t().contiguous().t()
    if layout == "strided":
        wider = z.new_full((2 * z.shape[0], z.shape[1] + 3), torch.nan)
        wider[1::2, 2:-1] = z
        return wider[1::2, 2:-1]
    if layout == "expanded" and len(z) and bool((z == z[0]).all()):
        return z[:1].expand(z.shape)
    return z


@st.composite
def batches(
    draw: st.DrawFn,
    rows: st.SearchStrategy[int] = st.integers(0, 9),  # noqa: B008
    dtypes: list[tuple[torch.dtype, torch.dtype]] = DTYPES,
) -> Batch:
    count, dim = draw(rows), draw(st.integers(1, 8) | st.sampled_from([1, 17, 17, 40]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    given_dtypes = draw(st.sampled_from(dtypes))
    shape = draw(st.sampled_from(SHAPES))
    z = shaped(shape, count, dim, generator)
    hostile = draw(st.lists(st.sampled_from(HOSTILE), max_size=3)) if count else []
    exact = shape == "one-hot" and "huge entry" not in hostile
    for change in hostile:
        view, row = draw(st.integers(0, 1)), draw(st.integers(0, count - 1))
        length = draw(st.sampled_from(LENGTHS[given_dtypes[view]]))
        if change == "zero":
            z[view, row] = 0
        elif dim == 1 and length > 1e154:
            continue  # a norm of one entry does not overflow
        elif change == "length" and (size := z[view, row].norm()) > 0:
            z[view, row] *= length / size
        elif change == "huge entry":
            z[view, row, 0] = length
        elif change == "duplicate":  # not of a row whose length another dtype does not hold
            z[view, row] = z[view, draw(st.integers(0, count - 1))]
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in (0, 1)]
    views = []
    for one, dtype, layout in zip(z, given_dtypes, layouts, strict=True):
        most = torch.finfo(dtype).max
        views.append(laid_out(one.clamp(-most, most).to(dtype), layout).detach())
    made = f"{shape}, {hostile or 'nothing hostile'}, {layouts}"
    return Batch((views[0], views[1]), made, exact)


temperatures = st.one_of(
    st.sampled_from([0.5, 0.003, 0.01, 0.07, 1.0, 100.0, -0.003, -0.3]),
    st.floats(0.003, 100),
    st.floats(-5, -0.003),
)
kinds = st.sampled_from(["cross", "within", "both"])
