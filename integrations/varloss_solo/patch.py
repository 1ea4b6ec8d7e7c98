"""Puts the mixins in front of solo-learn's classes, in place and once.

The new classes (``SimCLRWithVRN`` and so on) are attributes of this module, so pickle finds them by name.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from varloss_solo import methods
from varloss_solo.mixin import ObjectiveMixin, VRNMixin

MINIMUM_HYDRA = (1, 2)
_NOT_METHODS = ("base", "linear")
_MARK = "_varloss_refuses"


def install() -> None:
    """Makes every method of ``solo.methods.METHODS`` read the config block ``varloss``; a second call does nothing.

    It also does three other things. AutoResumer distinguishes runs by ``varloss`` and ``objective``; otherwise a plain run
    would resume from a checkpoint trained with VRN. ``dcl``, ``dhel`` and ``nt_xent`` become methods. main_linear.py refuses
    a ``varloss`` block, which it would ignore.

    Raises:
        RuntimeError: if Hydra is too old, or solo-learn is not laid out like its git main (its only PyPI release is not);
            the message says what to install.
    """
    _require_hydra()
    solo = _import("solo.methods")
    table: dict[str, Any] = solo.METHODS
    base = table.get("base")
    if base is None or list(inspect.signature(base.__init__).parameters) != ["self", "cfg"]:
        raise RuntimeError(
            "varloss: this solo-learn does not build its methods from one configuration. Its only PyPI release, 1.0.2 of "
            "2021, is such a release and is not supported: pip uninstall solo-learn, then run from a checkout (git clone "
            "https://github.com/vturrisi/solo-learn). To run this one without varloss: pip uninstall varloss."
        )
    for name, original in list(table.items()):
        if name not in _NOT_METHODS and not issubclass(original, VRNMixin):
            table[name] = _in_front_of(name, original)
    if methods.HOST in table:
        table.update(dict.fromkeys(methods.OBJECTIVES, table[methods.HOST]))
    resumer = _import("solo.utils.auto_resumer").AutoResumer
    resumer.SHOULD_MATCH.extend(key for key in ("varloss", "objective") if key not in resumer.SHOULD_MATCH)
    _refuse_in(_import("solo.methods.linear").LinearModel)


def __getattr__(name: str) -> Any:
    # A new process that unpickles a class has not called install() yet, so the first look-up does.
    if "WithVRN" in name:
        install()
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _require_hydra() -> None:
    hydra = importlib.import_module("hydra")
    version = tuple(int(part) for part in hydra.__version__.split(".")[:2])
    if version < MINIMUM_HYDRA:
        raise RuntimeError(
            f"varloss needs Hydra 1.2 or later; this is {hydra.__version__}: pip install --upgrade 'hydra-core>=1.3'."
        )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"varloss: solo-learn's {name} cannot be imported: {error}. Install the checkout's requirements (pip install -r "
            "requirements.txt 'setuptools<82'); 'varloss-solo doctor' in the checkout names what is missing."
        ) from error


def _in_front_of(name: str, original: type[Any]) -> type[Any]:
    """The method's class with the mixins in front; it can be imported by its name and therefore pickled."""
    fronts: tuple[type[Any], ...] = (VRNMixin, ObjectiveMixin) if name == methods.HOST else (VRNMixin,)
    title = f"{original.__name__}WithVRN"
    if title in globals():  # two names of one class
        title = f"{title}_{name}"
    body = {
        "__module__": __name__,
        "__qualname__": title,
        "__doc__": original.__doc__,
        "varloss_method": name,
        "varloss_original": original,
    }
    made = type(title, (*fronts, original), body)
    globals()[title] = made
    return made


def _refuse_in(linear: type[Any]) -> None:
    """Refuses a ``varloss`` block in main_linear.py, which trains a classifier on frozen features and would ignore it."""
    original = linear.add_and_assert_specific_cfg
    if getattr(original, _MARK, False):
        return

    def add_and_assert_specific_cfg(cfg: Any) -> Any:
        block = cfg.get("varloss")
        if block is not None and block.get("enabled", True):
            raise ValueError(
                "varloss belongs to main_pretrain.py: linear evaluation and finetuning have no pairs of views. Remove it."
            )
        return original(cfg)

    setattr(add_and_assert_specific_cfg, _MARK, True)
    linear.add_and_assert_specific_cfg = staticmethod(add_and_assert_specific_cfg)
