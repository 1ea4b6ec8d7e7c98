"""varloss for solo-learn: ``+varloss=vrn`` on the command line of an unmodified checkout.

``hydra_plugins.varloss_searchpath`` calls :func:`install` when Hydra starts inside solo-learn. Importing this package loads
neither torch nor solo-learn.

Modules: ``settings`` reads the config block ``varloss``, ``methods`` is the table of solo-learn's methods, ``plan`` joins
the two before the network is built, ``term`` is VRN while a run trains, ``mixin`` adds it to a method, ``patch`` puts the
mixins in front of solo-learn's classes, ``doctor`` checks an environment.
"""

__all__ = ["install"]


def install() -> None:
    """Puts varloss in front of solo-learn's methods; a second call does nothing. See :func:`varloss_solo.patch.install`."""
    from varloss_solo import patch  # noqa: PLC0415  (loads torch and solo-learn)

    patch.install()
