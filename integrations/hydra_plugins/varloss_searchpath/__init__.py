"""Hydra plugin: inside solo-learn it adds the config group ``varloss`` and puts VRN in front of solo-learn's methods.

Hydra imports every module of the namespace package ``hydra_plugins`` in every application of the environment. This module
therefore imports nothing that Hydra has not already imported, and does nothing unless solo-learn's methods are loaded.
"""

from __future__ import annotations

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

CONFIG_PATH = "pkg://varloss_solo.conf"


class VarlossSearchPath(SearchPathPlugin):
    """Hydra 1.2 and 1.3 find it through the namespace, Hydra 1.4 also through the entry point ``hydra.plugins``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Installs the adapter if ``solo.methods`` is loaded.

        Raises:
            RuntimeError: if solo-learn is loaded and the adapter cannot be installed. Hydra turns an ImportError of a plugin
                into a warning and continues, so the run would silently lack the requested loss.
        """
        methods = getattr(sys.modules.get("solo.methods"), "METHODS", None)
        if not isinstance(methods, dict):
            return
        try:
            from varloss_solo.patch import install  # noqa: PLC0415  (imports torch and solo-learn)
        except ImportError as error:
            raise RuntimeError(
                f"varloss is installed but cannot be imported: {error}. Reinstall it in the environment that runs "
                "solo-learn (pip install --force-reinstall --no-deps /path/to/varloss; torch >= 2.4 is needed), or remove it "
                "(pip uninstall varloss) to run without it."
            ) from error
        install()
        if all(entry.path != CONFIG_PATH for entry in search_path.get_path()):
            search_path.append(provider="varloss", path=CONFIG_PATH)
