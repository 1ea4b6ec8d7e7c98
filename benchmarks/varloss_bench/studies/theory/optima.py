"""Rows about the optima of free vectors for full, fixed and reshuffled batches, and in few dimensions."""

import itertools
from functools import partial

import torch

from varloss import functional
from varloss.functional import Pairs
from varloss.metrics import similarity_statistics
from varloss_bench.studies.theory import closed_forms, configurations, free_vectors
from varloss_bench.studies.theory.rows import Curve, Group, Loss, Row, number, optimum, partition, seeded


def _full_batch_losses(n: int) -> dict[str, tuple[Loss, float]]:
    """Losses that the full-batch theorem covers, with their predicted minima."""
    a, t = -1 / (n - 1), 0.5
    names: dict[tuple[Pairs, bool], str] = {
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
            closed_forms.symmetric_nt_xent(a, batch_size=n, temperature=t, negatives=negatives, decoupled=decoupled),
        )
    losses["DHEL (official)"] = (
        partial(functional.dhel, temperature=t, scale="official"),
        closed_forms.symmetric_dhel(a, batch_size=n, temperature=t, scale="official"),
    )
    kinds: tuple[Pairs, ...] = ("within", "both")
    for negatives in kinds:
        losses[f"SigLIP {negatives}"] = (
            partial(functional.sigmoid_loss, scale=5.0, bias=-2.0, negatives=negatives),
            closed_forms.symmetric_sigmoid(a, batch_size=n, scale=5.0, bias=-2.0, negatives=negatives),
        )
    losses["VRN, target of n"] = (
        lambda z0, z1: functional.vrn(z0, z1, num_samples=n) + functional.nt_xent(z0, z1, temperature=t),
        closed_forms.symmetric_vrn(a, num_samples=n) + closed_forms.symmetric_nt_xent(a, batch_size=n, temperature=t),
    )
    return losses


def full_batch() -> Group:
    """Theorem 5.1 and the values at the symmetric point (predictions 1 and 2)."""
    n = 8
    rows, positive, cross, within = [], [], [], []
    losses = _full_batch_losses(n)
    for at, (name, (loss, minimum)) in enumerate(losses.items()):
        found, u, v = optimum(loss, n, n - 1)
        rows += [
            Row(f"{name}: positives", 1.0, number(found.positive_mean), 1e-5),
            Row(f"{name}: cross-view negatives", -1 / (n - 1), number(found.cross_mean), 1e-5),
            Row(f"{name}: within-view negatives", -1 / (n - 1), number(found.within_mean), 1e-5),
            Row(f"{name}: minimum of the loss", minimum, number(loss(u, v)), 1e-7),
        ]
        positive.append((float(at), number(found.positive_mean)))
        cross.append((float(at), number(found.cross_mean)))
        within.append((float(at), number(found.within_mean)))
    found, _, _ = optimum(functional.spectral_loss, n, n)
    rows += [
        Row("spectral, the exception: positives", 1.0, number(found.positive_mean), 1e-5),
        Row("spectral, the exception: negatives", 0.0, number(found.cross_mean), 1e-5),
    ]
    labels: dict[str, Curve] = {f"label:{name}": [(float(at), 0.0)] for at, name in enumerate(losses)}
    curves = {"positives": positive, "cross-view negatives": cross, "within-view negatives": within, **labels}
    return Group("full-batch", f"Full batch: both views on one simplex (n = {n}, d = {n - 1})", rows, curves)


def fixed_batches() -> Group:
    """Theorem 5.5 (prediction 3): fixed partitions."""
    n, m, rows = 24, 4, []
    info_nce = partial(functional.nt_xent, temperature=0.5, negatives="cross")
    bounds = closed_forms.fixed_batch_variance_bounds(num_samples=n, batch_size=m)
    found, u, v = optimum(info_nce, n, m - 1, batches=partition(n, m))
    in_batch = torch.stack([similarity_statistics(u[b], v[b]).cross_mean for b in partition(n, m)])
    rows += [
        Row("positives", 1.0, number(found.positive_mean), 1e-5),
        Row("in-batch negatives", -1 / (m - 1), number(in_batch.mean()), 1e-5),
        Row("mean over all pairs", -1 / (n - 1), number(found.cross_mean), 1e-5),
        Row("variance at d = m-1: the upper bound", bounds.upper, number(found.cross_var), 1e-5),
    ]
    for arrangement, expected in (("orthogonal", bounds.lower), ("aligned", bounds.upper)):
        z = configurations.batch_simplices(n, m, arrangement=arrangement)  # type: ignore[arg-type]
        variance = number(similarity_statistics(z, z).cross_var)
        rows.append(Row(f"{arrangement} simplices attain a bound", expected, variance, 1e-12))
    curves: dict[str, Curve] = {"lower bound": [], "upper bound": [], "expected, d = 24": [], "measured, d = 24": []}
    for size in (2, 3, 4, 6, 8, 12, 24):
        bounds = closed_forms.fixed_batch_variance_bounds(num_samples=n, batch_size=size)
        expected = closed_forms.rotated_batch_variance(num_samples=n, batch_size=size, dim=24)
        # With independent Gaussian starts every batch is rotated independently, because the optimiser prefers no direction.
        variances = torch.stack(
            [
                optimum(info_nce, n, 24, batches=partition(n, size), seed=seed, steps=80)[0].cross_var
                for seed in range(6)
            ]
        )
        mean = number(variances.mean())
        curves["lower bound"].append((size, bounds.lower))
        curves["upper bound"].append((size, bounds.upper))
        curves["expected, d = 24"].append((size, expected))
        curves["measured, d = 24"].append((size, mean))
        rows.append(Row(f"m = {size}, d = 24, random start: variance", expected, mean, 0.05 * expected + 1e-5))
    title = f"Fixed mini-batches: the variance of all negatives grows as batches shrink (n = {n})"
    return Group("fixed-batches", title, rows, curves)


def reshuffled_batches() -> Group:
    """Prediction 4: not a theorem, but optimisation noise that grows with the learning rate."""
    n, dim = 32, 31
    curves: dict[str, Curve] = {}

    def variance(m: int, lr: float) -> float:
        generator = seeded(0)
        z0, z1 = (torch.randn(n, dim, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
        optimizer = torch.optim.SGD([z0, z1], lr=lr)
        # The number of passes times the learning rate is the same for all rates; with 60 a full batch reaches a variance of 1e-10.
        for _ in range(round(60 / lr)):
            for batch in torch.randperm(n, generator=generator).view(-1, m):
                optimizer.zero_grad()
                u, v = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
                # Each vector is used once per pass; with the sum over the batch its step is the same for all m.
                (m * functional.nt_xent(u[batch], v[batch], temperature=0.5)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                for z in (z0, z1):
                    z.copy_(torch.nn.functional.normalize(z, dim=1))
        return number(similarity_statistics(z0.detach(), z1.detach()).cross_var)

    sizes, rates = (4, 8, 16), (0.4, 0.1)
    for lr in rates:
        curves[f"learning rate {lr}"] = [(m, variance(m, lr)) for m in sizes]
    rows = []
    for (m, larger), (next_m, smaller) in itertools.pairwise(curves["learning rate 0.4"]):
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
        floor = closed_forms.vrn_rank_floor(num_samples=n, dim=dim)
        # The second view is not used: all positives are 1, so both views coincide.
        loss: Loss = lambda z0, _: functional.vrn(z0, z0, num_samples=n)  # noqa: E731
        u = free_vectors.optimize_free_vectors(loss, num_samples=n, dim=dim, generator=seeded(0))[0]
        found = number(functional.vrn(u, u, num_samples=n))
        rows.append(Row(f"d = {dim}: smallest VRN", floor, found, 1e-6))
        curves["floor n(n-1-d)/(d(n-1)²)"].append((dim, floor))
        curves["smallest VRN found"].append((dim, found))
    rows.append(Row("d = 128, n = 50000", 0.0078, closed_forms.vrn_rank_floor(num_samples=50_000, dim=128), 5e-5))
    collapsed = torch.ones(n, 4, dtype=torch.float64)
    variance = number(similarity_statistics(collapsed, collapsed).cross_var)
    rows.append(Row("full collapse has a variance below the floor", 0.0, variance, 1e-12))
    return Group(
        "rank-floor", f"Rank floor: aligned views in few dimensions cannot reach VRN = 0 (n = {n})", rows, curves
    )


GROUPS = (full_batch, fixed_batches, reshuffled_batches, rank_floor)
