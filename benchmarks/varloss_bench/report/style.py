"""How all figures of the harness look: one colour per weight, one marker per temperature."""

from collections.abc import Iterable

from matplotlib import colormaps
from matplotlib.colors import to_hex

from varloss_bench.config import TrialConfig
from varloss_bench.records.redraws import redraws_test

# Okabe-Ito: told apart by colour-blind readers as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#707070"
MARKERS = "osD^vP*X"


def weight_colours(weights: Iterable[float]) -> dict[float, str]:
    """A colour for each weight of VRN and grey for none; beyond six weights along viridis."""
    positive = sorted({weight for weight in weights if weight})
    colours = (
        COLOURS
        if len(positive) <= len(COLOURS)
        else [to_hex(colormaps["viridis"](i / len(positive))) for i in range(len(positive))]
    )
    return {0.0: GREY, **dict(zip(positive, colours, strict=False))}


def equal_words(config: TrialConfig) -> str:
    """What the trials of a figure have equally many of; no figure is without it."""
    return f"equal steps ({config.steps})" if config.equal == "steps" else f"equal epochs ({config.epochs})"


def split_words(config: TrialConfig) -> str:
    """The split that was read, and whether it is the one published with the data."""
    if config.evaluate_on == "val":
        return "validation split"
    if not config.official_test:
        return "test split"
    return {
        True: "part of the published test split",
        None: f"{config.num_test} published test images",  # all of them or not
        False: "published test split",
    }[redraws_test(config)]
