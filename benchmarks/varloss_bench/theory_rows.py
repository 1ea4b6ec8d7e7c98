"""What the theory predicts and what the package's own losses do to free unit vectors: one function per group of rows.

Every optimum here is found by minimising the real losses of `varloss` in float64 (`varloss.theory.optimize_free_vectors`).
No network, no data. Batches are FIXED partitions wherever the prediction is about fixed batches; the one group that
reshuffles says so.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from varloss import functional, metrics, theory
from varloss.metrics import SimilarityStatistics, similarity_statistics

Loss = Callable[[Tensor, Tensor], Tensor]
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """One prediction against one measurement.

    Attributes:
        name: What was measured.
        predicted: The theory's number.
        measured: Ours.
        tolerance: Largest difference allowed, absolute; beyond the bound, for `relation` other than "=".
        relation: "=": the measurement equals the prediction. "<=", ">=": the prediction is an upper, a lower bound.
    """

    name: str
    predicted: float
    measured: float
    tolerance: float
    relation: Literal["=", "<=", ">="] = "="

    @property
    def ok(self) -> bool:
        """Whether the measurement keeps to the tolerance. NaN never does."""
        excess = {
            "=": abs(self.measured - self.predicted),
            "<=": self.measured - self.predicted,
            ">=": self.predicted - self.measured,
        }[self.relation]
        return excess <= self.tolerance


@dataclass(frozen=True)
class Group:
    """Rows of one part of the theory, and the curves its figure shows.

    Attributes:
        key: Short name, also of the figure's file.
        title: What the theory says.
        rows: The predictions.
        curves: By label, points (x, y) of the figure.
    """

    key: str
    title: str
    rows: list[Row]
    curves: dict[str, Curve] = field(default_factory=dict)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _optimum(
    loss: Loss, n: int, dim: int, *, batches: list[Tensor] | None = None, seed: int = 0, steps: int = 500
) -> tuple[SimilarityStatistics, Tensor, Tensor]:
    u, v = theory.optimize_free_vectors(
        loss, num_samples=n, dim=dim, batches=batches, steps=steps, generator=_generator(seed)
    )
    return similarity_statistics(u, v), u, v


def _number(value: Tensor) -> float:
    return float(value)


def _full_batch_losses(n: int) -> dict[str, tuple[Loss, float]]:
    """Loss and its predicted minimum, for the members that the full-batch theorem covers."""
    a, t = -1 / (n - 1), 0.5
    names = {
        ("cross", False): "InfoNCE",
        ("both", False): "NT-Xent",
        ("within", False): "NT-Xent within",
        ("cross", True): "decoupled cross",
        ("both", True): "DCL",
        ("within", True): "DHEL (paper)",
    }
    losses: dict[str, tuple[Loss, float]] = {}
    for (negatives, decoupled), name in names.items():
        losses[name] = (
            partial(functional.nt_xent, temperature=t, negatives=negatives, decoupled=decoupled),
            theory.symmetric_nt_xent(a, batch_size=n, temperature=t, negatives=negatives, decoupled=decoupled),  # type: ignore[arg-type]
        )
    losses["DHEL (official)"] = (
        partial(functional.dhel, temperature=t, scale="official"),
        theory.symmetric_dhel(a, batch_size=n, temperature=t, scale="official"),
    )
    for negatives in ("within", "both"):
        losses[f"SigLIP {negatives}"] = (
            partial(functional.sigmoid_loss, scale=5.0, bias=-2.0, negatives=negatives),
            theory.symmetric_sigmoid(a, batch_size=n, scale=5.0, bias=-2.0, negatives=negatives),  # type: ignore[arg-type]
        )
    losses["VRN, target of n"] = (
        lambda z0, z1: functional.vrn(z0, z1, num_samples=n) + functional.nt_xent(z0, z1, temperature=t),
        theory.symmetric_vrn(a, num_samples=n) + theory.symmetric_nt_xent(a, batch_size=n, temperature=t),
    )
    return losses


def full_batch() -> Group:
    """Theorem 5.1 and the values at the symmetric point (predictions 1 and 2)."""
    n = 8
    rows, positive, cross, within = [], [], [], []
    losses = _full_batch_losses(n)
    for at, (name, (loss, minimum)) in enumerate(losses.items()):
        found, u, v = _optimum(loss, n, n - 1)
        rows += [
            Row(f"{name}: positives", 1.0, _number(found.positive_mean), 1e-5),
            Row(f"{name}: cross-view negatives", -1 / (n - 1), _number(found.cross_mean), 1e-5),
            Row(f"{name}: within-view negatives", -1 / (n - 1), _number(found.within_mean), 1e-5),
            Row(f"{name}: minimum of the loss", minimum, _number(loss(u, v)), 1e-7),
        ]
        positive.append((float(at), _number(found.positive_mean)))
        cross.append((float(at), _number(found.cross_mean)))
        within.append((float(at), _number(found.within_mean)))
    found, _, _ = _optimum(functional.spectral_loss, n, n)
    rows += [
        Row("spectral, the exception: positives", 1.0, _number(found.positive_mean), 1e-5),
        Row("spectral, the exception: negatives", 0.0, _number(found.cross_mean), 1e-5),
    ]
    labels: dict[str, Curve] = {f"label:{name}": [(float(at), 0.0)] for at, name in enumerate(losses)}
    curves = {"positives": positive, "cross-view negatives": cross, "within-view negatives": within, **labels}
    return Group("full-batch", f"Full batch: both views on one simplex (n = {n}, d = {n - 1})", rows, curves)


def _partition(n: int, m: int) -> list[Tensor]:
    return list(torch.arange(n).split(m))


def fixed_batches() -> Group:
    """Theorem 5.5 (prediction 3): fixed partitions."""
    n, m, rows = 24, 4, []
    info_nce = partial(functional.nt_xent, temperature=0.5, negatives="cross")
    bounds = theory.fixed_batch_variance_bounds(num_samples=n, batch_size=m)
    found, u, v = _optimum(info_nce, n, m - 1, batches=_partition(n, m))
    in_batch = torch.stack([similarity_statistics(u[b], v[b]).cross_mean for b in _partition(n, m)])
    rows += [
        Row("positives", 1.0, _number(found.positive_mean), 1e-5),
        Row("in-batch negatives", -1 / (m - 1), _number(in_batch.mean()), 1e-5),
        Row("mean over all pairs", -1 / (n - 1), _number(found.cross_mean), 1e-5),
        Row("variance at d = m-1: the upper bound", bounds.upper, _number(found.cross_var), 1e-5),
    ]
    for arrangement, expected in (("orthogonal", bounds.lower), ("aligned", bounds.upper)):
        z = theory.batch_simplices(n, m, arrangement=arrangement)  # type: ignore[arg-type]
        variance = _number(similarity_statistics(z, z).cross_var)
        rows.append(Row(f"{arrangement} simplices attain a bound", expected, variance, 1e-12))
    curves: dict[str, Curve] = {"lower bound": [], "upper bound": [], "expected, d = 24": [], "measured, d = 24": []}
    for size in (2, 3, 4, 6, 8, 12, 24):
        bounds = theory.fixed_batch_variance_bounds(num_samples=n, batch_size=size)
        expected = theory.rotated_batch_variance(num_samples=n, batch_size=size, dim=24)
        # Independent Gaussian starts leave every batch rotated independently: the optimiser prefers no direction.
        variances = torch.stack(
            [
                _optimum(info_nce, n, 24, batches=_partition(n, size), seed=seed, steps=80)[0].cross_var
                for seed in range(6)
            ]
        )
        mean = _number(variances.mean())
        curves["lower bound"].append((size, bounds.lower))
        curves["upper bound"].append((size, bounds.upper))
        curves["expected, d = 24"].append((size, expected))
        curves["measured, d = 24"].append((size, mean))
        rows.append(Row(f"m = {size}, d = 24, random start: variance", expected, mean, 0.05 * expected + 1e-5))
    title = f"Fixed mini-batches: the variance of all negatives grows as batches shrink (n = {n})"
    return Group("fixed-batches", title, rows, curves)


def reshuffled_batches() -> Group:
    """Prediction 4: no theorem, optimisation noise that goes with the learning rate."""
    n, dim, passes = 32, 31, 150
    curves: dict[str, Curve] = {}

    def variance(m: int, lr: float) -> float:
        generator = _generator(0)
        z0, z1 = (torch.randn(n, dim, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
        optimizer = torch.optim.SGD([z0, z1], lr=lr)
        for _ in range(passes):
            for batch in torch.randperm(n, generator=generator).split(m):
                optimizer.zero_grad()
                u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
                # Each vector is met once a pass: the sum over the batch keeps its step alike for all m.
                (m * functional.nt_xent(u[batch], v[batch], temperature=0.5)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                for z in (z0, z1):
                    z.copy_(torch.nn.functional.normalize(z, dim=1))
        return _number(similarity_statistics(z0.detach(), z1.detach()).cross_var)

    sizes, rates = (4, 8, 16, 32), (0.4, 0.1)
    for lr in rates:
        curves[f"learning rate {lr}"] = [(m, variance(m, lr)) for m in sizes]
    rows = []
    for (m, larger), (next_m, smaller) in zip(
        curves["learning rate 0.4"], curves["learning rate 0.4"][1:], strict=False
    ):
        rows.append(Row(f"variance at m = {next_m:.0f} below that at m = {m:.0f}", larger, smaller, 0.0, "<="))
    small, large = curves["learning rate 0.1"][0][1], curves["learning rate 0.4"][0][1]
    rows.append(
        Row("m = 4: a quarter of the learning rate leaves at most half the variance", large / 2, small, 0, "<=")
    )
    title = (
        f"RESHUFFLED mini-batches at a constant learning rate: optimisation noise, not a theorem (n = {n}, d = {dim})"
    )
    return Group("reshuffled-batches", title, rows, curves)


def rank_floor() -> Group:
    """Prediction 5."""
    n, rows = 32, []
    curves: dict[str, Curve] = {"floor n(n-1-d)/(d(n-1)²)": [], "smallest VRN found": []}
    for dim in (2, 4, 8, 16, 24, 31):
        floor = theory.vrn_rank_floor(num_samples=n, dim=dim)
        # The second view is not used: both views coincide, which is what "all positives are 1" means.
        loss: Loss = lambda z0, _: functional.vrn(z0, z0, num_samples=n)  # noqa: E731
        u = theory.optimize_free_vectors(loss, num_samples=n, dim=dim, generator=_generator(0))[0]
        found = _number(functional.vrn(u, u, num_samples=n))
        rows.append(Row(f"d = {dim}: smallest VRN", floor, found, 1e-6))
        curves["floor n(n-1-d)/(d(n-1)²)"].append((dim, floor))
        curves["smallest VRN found"].append((dim, found))
    rows.append(Row("d = 128, n = 50000", 0.0078, theory.vrn_rank_floor(num_samples=50_000, dim=128), 5e-5))
    collapsed = torch.ones(n, 4, dtype=torch.float64)
    variance = _number(similarity_statistics(collapsed, collapsed).cross_var)
    rows.append(Row("full collapse is under the floor in variance", 0.0, variance, 1e-12))
    return Group(
        "rank-floor", f"Rank floor: aligned views in few dimensions cannot reach VRN = 0 (n = {n})", rows, curves
    )


def separation() -> Group:
    """Predictions 6 and 9: SigLIP tears positives apart, along the tight alignment bound."""
    n, rows = 8, []
    curves: dict[str, Curve] = {"SigLIP, cross-view negatives": [], "SigLIP, within-view negatives": []}
    for scale, bias in ((10.0, 0.0), (5.0, -2.0), (2.0, 0.0), (10.0, -8.0)):
        loss = partial(functional.sigmoid_loss, scale=scale, bias=bias)
        expected = theory.siglip_optimum(num_samples=n, scale=scale, bias=bias)
        found, _, _ = _optimum(loss, n, n + 1)
        name = f"SigLIP t = {scale:g}, b = {bias:g}"
        rows += [
            Row(f"{name}: positives", expected.positive, _number(found.positive_mean), 1e-4),
            Row(f"{name}: cross-view negatives", expected.cross, _number(found.cross_mean), 1e-4),
            Row(f"{name}: within-view negatives", expected.within, _number(found.within_mean), 1e-4),
        ]
        cured, _, _ = _optimum(partial(loss, negatives="within"), n, n + 1)
        rows.append(Row(f"{name}, within-view negatives: positives", 1.0, _number(cured.positive_mean), 1e-4))
        curves["SigLIP, cross-view negatives"].append((_number(found.cross_mean), _number(found.positive_mean)))
        curves["SigLIP, within-view negatives"].append((_number(cured.cross_mean), _number(cured.positive_mean)))
    excess, points = [], []
    for seed in range(300):
        generator = _generator(seed)
        z0 = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        z1 = 3 * torch.rand((), generator=generator).item() * torch.randn(n, 3, generator=generator).double() - z0 * (
            -1 if seed % 3 else 1
        )
        found = similarity_statistics(z0, z1)
        bound = theory.alignment_bound(_number(found.cross_mean), num_samples=n)
        excess.append(_number(found.positive_mean) - bound)
        points.append((_number(found.cross_mean), _number(found.positive_mean)))
    rows.append(Row("tight bound: largest excess of 300 random pairs of views", 0.0, max(excess), 1e-12, "<="))
    found = similarity_statistics(*theory.split_simplex(n, 0.2))
    bound = theory.alignment_bound(_number(found.cross_mean), num_samples=n)
    rows.append(Row("tight bound: equality on a split simplex", bound, _number(found.positive_mean), 1e-12))
    negatives = [-1 + 0.01 * i for i in range(101)]
    curves["random views"] = points
    curves["tight bound"] = [(x, theory.alignment_bound(x, num_samples=n)) for x in negatives]
    curves["published bound"] = [(x, min(1.0, 1 + x + 1 / (n - 1))) for x in negatives]
    return Group("separation", f"Alignment bound and the excessive separation of SigLIP (n = {n})", rows, curves)


def vrn_rows() -> Group:
    """Prediction 7: what VRN does at the optimum, and what it cannot do."""
    rows = []
    curves: dict[str, Curve] = {"predicted, n = 32, m = 4": [], "measured, n = 32, m = 4": []}
    for n, m, t, weights in (
        (32, 4, 0.5, (0.3, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0)),
        (50_000, 32, 0.2, (10.0, 30.0, 100.0)),
    ):
        for weight in weights:
            expected = theory.vrn_equilibrium(num_samples=n, batch_size=m, temperature=t, weight=weight).negative
            # One batch stands for all: fixed batches do not see each other.
            found, _, _ = _optimum(_info_nce_with_vrn(t, weight, n), m, m)
            measured = _number(found.cross_mean)
            rows.append(Row(f"InfoNCE + VRN, n = {n}, m = {m}, weight {weight:g}: negatives", expected, measured, 1e-5))
            if n == 32:
                curves["predicted, n = 32, m = 4"].append((weight, expected))
                curves["measured, n = 32, m = 4"].append((weight, measured))
    for weight in (1.0, 30.0, 300.0):
        expected = theory.siglip_optimum(num_samples=8, scale=5.0, bias=-2.0, vrn_weight=weight).positive
        found, _, _ = _optimum(_siglip_with_vrn(weight), 8, 9)
        name = f"SigLIP t = 5, b = -2 + VRN, weight {weight:g}: positives"
        rows.append(Row(name, expected, _number(found.positive_mean), 1e-4))
    rows += _cross_batch_rows()
    for dim, weight, expected, tolerance in ((8, 10.0, 0.78, 0.03), (8, 30.0, 0.35, 0.02), (8, 100.0, 0.175, 0.02)):
        rows.append(_alignment_row(dim, weight, expected, tolerance))
    rows.append(_alignment_row(16, 30.0, 0.75, 0.03))
    rows.append(_alignment_row(16, 100.0, 0.44, 0.03))
    both = theory.vrn_alignment(num_samples=32, dim=8, temperature=0.5, weight=100.0, pairs="both", restarts=1)
    rows.append(Row("the same with VRN on both kinds of pairs, weight 100", 1.0, _number(both.positive_mean), 1e-4))
    curves["alignment, d = 8, cross-view VRN"] = [
        (float(row.name.rsplit(" ", 1)[1]), row.measured) for row in rows if row.name.startswith("positives, d = 8,")
    ]
    return Group("vrn", "VRN at the optimum of free vectors, fixed batches: not advice for a network", rows, curves)


def _info_nce_with_vrn(t: float, weight: float, n: int) -> Loss:
    return lambda z0, z1: (
        functional.nt_xent(z0, z1, temperature=t, negatives="cross") + weight * functional.vrn(z0, z1, num_samples=n)
    )


def _siglip_with_vrn(weight: float) -> Loss:
    return lambda z0, z1: (
        functional.sigmoid_loss(z0, z1, scale=5.0, bias=-2.0) + weight * functional.vrn(z0, z1, num_samples=8)
    )


def _alignment_row(dim: int, weight: float, expected: float, tolerance: float) -> Row:
    """No closed form is known: the expectation is an earlier measurement with another optimiser."""
    found = theory.vrn_alignment(num_samples=32, dim=dim, temperature=0.5, weight=weight, restarts=2)
    return Row(
        f"positives, d = {dim}, n = 32, full batch, weight {weight:g}",
        expected,
        _number(found.positive_mean),
        tolerance,
    )


def _cross_batch_rows() -> Iterator[Row]:
    """VRN on fixed batches never sees pairs of different batches; what is left of the variance is theirs."""
    n, m, dim, t = 64, 4, 16, 0.5
    for weight in (0.0, 30.0):
        a = theory.vrn_equilibrium(num_samples=n, batch_size=m, temperature=t, weight=weight).negative
        batches = n // m
        # Unrelated unit vectors: E[S²] = 1/d. A batch's sum has length² m(1+(m-1)a), which spreads the overall mean.
        square = (m - 1) / (n - 1) * a**2 + (n - m) / (n - 1) / dim
        spread = 2 * batches * (batches - 1) * (m * (1 + (m - 1) * a)) ** 2 / dim / (n * (n - 1)) ** 2
        expected = square - (a * (m - 1) / (n - 1)) ** 2 - spread
        loss = _info_nce_with_vrn(t, weight, n)
        found = [
            _optimum(loss, n, dim, batches=_partition(n, m), seed=seed, steps=60)[0].cross_var for seed in range(6)
        ]
        name = f"fixed batches, n = 64, m = 4, d = 16, weight {weight:g}: variance of all pairs"
        yield Row(name, expected, _number(torch.stack(found).mean()), 0.03 * expected)


def temperature() -> Group:
    """Predictions 8, 10 and 11: gradients, relative penalties and temperature."""
    n, dim = 16, 8
    generator = _generator(0)
    z0 = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    z1 = z0 + 0.7 * torch.randn(n, dim, generator=generator, dtype=torch.float64)
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
    similarity = u @ v.T
    rows = []

    sizes = (2, 4, 8, 16)
    pushes = []
    for m in sizes:
        gradient = similarity_gradient(
            partial(functional.nt_xent, temperature=0.5, negatives="cross"), similarity[:m, :m]
        )
        balance = _number(gradient.sum().abs())
        rows.append(Row(f"m = {m}: gradients of positives and negatives cancel", 0.0, balance, 1e-12))
        pushes.append(_number(gradient[0, 1]))
    rows.append(Row("push on one negative, m = 16: still positive", 0.0, pushes[-1], 0.0, ">="))
    for (m, larger), (next_m, smaller) in zip(
        zip(sizes, pushes, strict=True), zip(sizes[1:], pushes[1:], strict=True), strict=False
    ):
        rows.append(Row(f"push at m = {next_m} below that at m = {m}", larger, smaller, 0.0, "<="))

    temperatures = [0.01 * 1.35**k for k in range(21)]
    entropy = [_number(metrics.relative_penalty_entropy(z0, z1, temperature=t)) for t in temperatures]
    growth = min(after - before for before, after in zip(entropy, entropy[1:], strict=False))
    rows.append(Row("penalty entropy: smallest growth from one temperature to the next", 0.0, growth, 0.0, ">="))
    off = similarity.masked_fill(torch.eye(n, dtype=torch.bool), -math.inf)
    limit = torch.cat([(off.amax(k) - similarity.diagonal()).clamp_min(0) for k in (0, 1)]).mean()
    scaled = [t * _number(functional.nt_xent(z0, z1, temperature=t, negatives="cross")) for t in temperatures]
    cold = 1e-5 * _number(functional.nt_xent(z0, z1, temperature=1e-5, negatives="cross"))
    rows.append(Row("t·L as t → 0: mean of max(S_max - S_ii, 0)", _number(limit), cold, 1e-4))
    sphere = torch.randn(4000, 128, generator=generator, dtype=torch.float64)
    uniform = -theory.uniform_sphere_uniformity(128)
    rows.append(Row("-uniformity of the sphere, d = 128, analytic", 3.93753, uniform, 5e-6))
    rows.append(Row("-uniformity of 4000 random points, d = 128", uniform, -_number(metrics.uniformity(sphere)), 2e-3))
    curves = {
        "entropy": list(zip(temperatures, entropy, strict=True)),
        "entropy of uniform penalties": [(t, math.log(n - 1)) for t in temperatures],
        "t·L": list(zip(temperatures, scaled, strict=True)),
        "limit t → 0": [(t, _number(limit)) for t in temperatures],
        "push": list(zip(map(float, sizes), pushes, strict=True)),
    }
    return Group("temperature", "Gradients, relative penalties and temperature", rows, curves)


def similarity_gradient(loss: Loss, similarity: Tensor) -> Tensor:
    """dL/dS of a two-view loss that depends on cross-view similarities only, through its real gradient.

    With u_i = e_i and v_j = (S_1j, ..., S_mj, rest), S is u @ v.T and dL/dv_j = sum_i dL/dS_ij e_i, of which normalisation
    takes off its part along v_j. The extra coordinate shows how much was taken.
    """
    m = similarity.shape[0]
    scale = 1.01 * max(1.0, _number(similarity.norm(dim=0).max()))
    columns = similarity / scale
    rest = (1 - columns.square().sum(0)).sqrt()
    v = torch.cat([columns, rest[None]]).T.clone().requires_grad_()
    u = torch.eye(m, m + 1, dtype=torch.float64)
    loss(u, v).backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    radial = -v.grad[:, m] / rest
    return (v.grad + radial[:, None] * v.detach())[:, :m].T


GROUPS: tuple[Callable[[], Group], ...] = (
    full_batch,
    fixed_batches,
    reshuffled_batches,
    rank_floor,
    separation,
    vrn_rows,
    temperature,
)
