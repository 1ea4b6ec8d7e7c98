"""Misspelt names of the config blocks.

Hydra accepts any key with a ``+``, and solo-learn reads only the keys it knows. A misspelt ``+varlos=vrn`` would therefore
train a plain run. A key is refused for its name, or for its content where the run says nothing else about varloss.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from varloss_solo.settings import BETWEEN, FORK_KEYS, KEYS, PAIRS

BLOCKS = ("varloss", "add_vrn_loss_term")
NAMES = (*BLOCKS, "objective")
PRESETS = ("vrn", "vrn_both", "paper", "off")
_ONLY_OURS = ("pairs", "between", "negatives", "num_samples", "warmup_fraction")
_HOMES = ((), ("method_kwargs",))
# One wrong letter of "varloss" has a ratio of at least 0.85; two have one of at least 0.71.
_NEAR, _NEAR_WITH_CONTENT = 0.85, 0.75


def refuse_misspelt(cfg: DictConfig) -> None:
    """Raises ValueError for a key that can only be meant for varloss and that nothing would read.

    At the top level and in ``method_kwargs`` a name like one of ours is enough, except for ``val_loss`` and other names that
    end in the word ``loss``. Elsewhere the key must also hold a preset or keys of the block. In a run without a ``varloss``
    block the content is enough if nothing else has it. Keys that an interpolation refers to are read, and pass.
    """
    content = OmegaConf.to_container(cfg, resolve=False)
    silent = not any(name in cfg for name in BLOCKS)
    interpolations = " ".join(re.findall(r"\$\{[^}]*", str(content)))
    for path, value in _keys(content):
        name = _meant(path, value) or ("varloss" if silent and _is_ours_alone(value) else None)
        if name is not None and not re.search(rf"\b{re.escape(path[-1])}\b", interpolations):
            raise ValueError(
                f"unknown key {'.'.join(path)}: did you mean {name}{' at the top level' if len(path) > 1 else ''}? Nothing "
                "reads the key, so the run would ignore it. A key of your own needs another name"
                + (", or a run that says what it wants: add +varloss=off." if silent else ".")
            )


def _keys(block: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All keys of nested mappings with their values, but not those inside our own blocks."""
    for key, value in block.items():
        here = (*path, str(key))
        if len(here) == 1 and here[0] in NAMES:
            continue
        yield here, value
        if isinstance(value, Mapping):
            yield from _keys(value, here)


def _meant(path: tuple[str, ...], value: Any) -> str | None:
    """Which of our names the key is meant to be; None for a key of somebody else."""
    at_home, fits = path[:-1] in _HOMES, _fits(value)
    if not at_home and not fits:
        return None
    words = re.findall(r"[a-z0-9]+", path[-1].casefold())
    joined = "".join(words)
    if _ratio(joined, "addvrnlossterm") >= _NEAR:
        return "add_vrn_loss_term"
    # val_loss is made of words of its own, and var_loss_weight is VICReg's.
    parts = words if len(words) > 1 and words[-1] == "loss" and words != ["var", "loss"] else [*words, joined]
    near = max((_ratio(part, "varloss") for part in parts), default=0.0)
    if any("varloss" in part for part in words) or "vrn" in joined or near >= (_NEAR_WITH_CONTENT if fits else _NEAR):
        return "varloss"
    if at_home and isinstance(value, str) and _ratio(joined, "objective") >= _NEAR:
        return "objective"
    return None


def _fits(value: Any) -> bool:
    """Whether a block of ours may hold the value: a preset's name, or keys that are all ours."""
    if isinstance(value, Mapping):
        return bool(value) and (set(value) <= set(KEYS) or set(value) <= set(FORK_KEYS))
    return value in PRESETS if isinstance(value, str) else False


def _is_ours_alone(value: Any) -> bool:
    """Whether nobody else would have the value: a preset that is no English word, or a weight beside keys of VRN."""
    if not isinstance(value, Mapping):
        return value in ("vrn", "vrn_both") if isinstance(value, str) else False
    named = {"pairs": PAIRS, "between": BETWEEN, "negatives": PAIRS}
    return (
        "weight" in value
        and set(value) <= set(KEYS)
        and any(key in value for key in _ONLY_OURS)
        and all(value.get(key) in (None, *allowed) for key, allowed in named.items())
    )


def _ratio(given: str, name: str) -> float:
    return difflib.SequenceMatcher(None, given, name).ratio()
