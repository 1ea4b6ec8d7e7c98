"""The plan of one run: its settings and its method, combined and checked before the network is built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import varloss
from varloss_solo import methods, settings, spelling
from varloss_solo.methods import Method, Objective
from varloss_solo.settings import Settings


@dataclass(frozen=True)
class VRN:
    """How VRN enters a run, as a term of the loss or, with weight 0, as a measurement.

    Attributes:
        method: solo-learn's name of the method.
        spec: the method's row of the table.
        settings: the configuration block.
        between: which tensors form the pairs.
    """

    method: str
    spec: Method
    settings: Settings
    between: str

    @property
    def weight(self) -> float:
        """Factor on VRN, after the warm-up if there is one."""
        return float(self.settings.weight or 0.0)

    def regularizer(self, num_samples: int | None, *, gather_distributed: bool = False) -> varloss.VRNRegularizer:
        """VRN with weight 1, with the settings' target or, without one, the target of ``num_samples``."""
        target = self.settings.target
        term = varloss.VRNRegularizer(
            weight=1.0,
            num_samples=num_samples if target is None else None,
            target=target,
            pairs=self.settings.pairs,
            exponent=self.settings.exponent,
            gather_distributed=gather_distributed,
        )
        # The start-up line names the pairs.
        term.warned_of_one_side = True
        return term

    def check(self) -> None:
        """Raises ValueError for a value out of range, before the size of the training set is known."""
        try:
            self.regularizer(2 if self.settings.num_samples is None else self.settings.num_samples)
            varloss.VRNRegularizer(weight=self.weight, target=0.0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"varloss: {error}") from error


@dataclass(frozen=True)
class Plan:
    """The decisions of one run.

    Attributes:
        vrn: None if VRN is neither added nor measured.
        objective: the loss that replaces SimCLR's; None if the method keeps its own.
        silent: the configuration says nothing about varloss.
        from_fork: the settings came from ``add_vrn_loss_term``.
    """

    vrn: VRN | None
    objective: Objective | None
    silent: bool
    from_fork: bool

    def describe(self, term: str | None) -> str | None:
        """The start-up line, from the description of VRN; None if there is nothing to report."""
        objective = ""
        if self.objective is not None:
            name, negatives = self.objective.name, self.objective.negatives
            objective = f"objective {name} with {negatives} negatives in simclr's place"
        if term is None:
            return f"no VRN; {objective}" if objective else None if self.silent else "off"
        return ", ".join(filter(None, [term, objective, "read from add_vrn_loss_term" if self.from_fork else ""]))


def make(cfg: DictConfig, method: str) -> Plan:
    """Plan of a run of ``method``; rewrites ``cfg`` to its canonical form.

    In the canonical form ``method`` is a name that solo-learn itself knows, and ``objective`` is a separate key. main_knn.py and
    main_umap.py then build the network with or without the plugin. ``varloss`` holds every key or is absent, so AutoResumer
    compares the meaning of two configurations and not their spelling.

    Raises:
        ValueError: for misspelt blocks, and for settings that are not understood, contradict each other or do not fit the
            method.
    """
    spelling.refuse_misspelt(cfg)
    found, from_fork = _read(cfg)
    # varloss: null names the block, and wants nothing of it.
    silent = found is None and "varloss" not in cfg
    objective = _objective(cfg, method, found)
    if method in methods.OBJECTIVES:
        method = methods.HOST
    vrn = _vrn(method, found)
    if vrn is not None:
        vrn.check()
    with open_dict(cfg):
        cfg.method = method
        for key in ("objective", "varloss", "add_vrn_loss_term"):
            cfg.pop(key, None)
        if objective is not None:
            cfg.objective = objective.name
        if found is not None and found.enabled:
            cfg.varloss = found.as_dict()
    return Plan(vrn, objective, silent=silent, from_fork=from_fork)


def _read(cfg: DictConfig) -> tuple[Settings | None, bool]:
    """Settings of the run (None without any), and whether they use the reference fork's spelling."""
    block, fork = _block(cfg, "varloss"), _block(cfg, "add_vrn_loss_term")
    own = None if block is None else settings.from_block(block)
    if fork is None:
        return own, False
    forked = settings.from_fork(fork)
    if not forked.enabled:
        return own, False
    if own is not None:
        raise ValueError("the configuration has both varloss and add_vrn_loss_term: keep one of them.")
    scaling = OmegaConf.select(cfg, "optimizer.lr_method", default="linear")
    if scaling != "linear":
        raise ValueError(
            f"optimizer.lr_method={scaling!r} is a key of the fork that add_vrn_loss_term comes from; solo-learn ignores it "
            "and scales the learning rate linearly (lr * batch size * devices / 256). Remove the key and set optimizer.lr."
        )
    return forked, True


def _block(cfg: DictConfig, key: str) -> Any:
    try:
        block = OmegaConf.select(cfg, key, default=None)
        return OmegaConf.to_container(block, resolve=True) if OmegaConf.is_config(block) else block
    except OmegaConfBaseException as error:
        raise ValueError(f"the block {key} cannot be read: {error}") from error


def _objective(cfg: DictConfig, method: str, found: Settings | None) -> Objective | None:
    name = method if method in methods.OBJECTIVES else OmegaConf.select(cfg, "objective", default=None)
    negatives = found.negatives if found is not None and found.enabled else None
    if name is None and negatives is None:
        return None
    if method != methods.HOST and method not in methods.OBJECTIVES:
        given = f"varloss.negatives={negatives}" if name is None else f"objective={name}"
        raise ValueError(
            f"{given} replaces SimCLR's loss and does not fit method={method}: use method=simclr, nt_xent, dcl or dhel."
        )
    name = "nt_xent" if name is None else name
    if name not in methods.OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(methods.OBJECTIVES)}; got {name!r}.")
    objective = methods.OBJECTIVES[name]
    if negatives not in (None, objective.negatives) and not objective.free:
        raise ValueError(
            f"{name} is defined by its {objective.negatives}-view negatives; got varloss.negatives={negatives}. For the "
            f"decoupled loss with other negatives use method=dcl varloss.negatives={negatives}."
        )
    return objective if negatives is None else replace(objective, negatives=negatives)


def _vrn(method: str, found: Settings | None) -> VRN | None:
    """None if no weight is set."""
    if found is None or not found.enabled or found.weight is None:
        return None
    spec = methods.METHODS.get(method, Method(refusal="varloss does not know which of its outputs are projections"))
    if not spec.offered:
        known = ", ".join(name for name, row in methods.METHODS.items() if row.offered)
        raise ValueError(
            f"method={method} has no pairs for VRN: {spec.refusal}. Methods that have: {known}. To run without it remove "
            "varloss from the command or use +varloss=off."
        )
    offers = " or ".join(f"varloss.between={name} ({spec.pair(name)})" for name in spec.offered)
    between = found.between or spec.default
    if between is None:
        raise ValueError(f"method={method} has no negatives of its own, so VRN is added only on request: {offers}.")
    if between not in spec.offered:
        raise ValueError(f"method={method} offers {offers}; got varloss.between={between}.")
    if between != "views" and found.pairs != "cross":
        raise ValueError(
            f"varloss.between={between} has a gradient on one side only and takes varloss.pairs=cross; got {found.pairs}."
        )
    return VRN(method, spec, found, between)
