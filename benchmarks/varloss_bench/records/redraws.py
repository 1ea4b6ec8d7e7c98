"""What a seed redraws and what it does not, according to a trial's configuration (`sets.split_indices` draws it)."""

from varloss_bench.config import TrialConfig
from varloss_bench.datasets import published_sizes

_ALWAYS = ("labelled subsets", "weights", "order", "augmentations")


def redraws_training(config: TrialConfig) -> bool | None:
    """Whether seeds differ in their training images; None if the number of all images is unknown.

    They differ if a test split or a validation split is drawn, because all splits are drawn from the same images.
    """
    if not config.official_test or config.num_train is None or config.num_val != 0:
        return True
    total = published_sizes(config.data)[0]
    return None if total is None else config.num_train < total


def redraws_test(config: TrialConfig) -> bool | None:
    """Whether seeds differ in their test images. If not, these are all published test images; None as above."""
    if not config.official_test or config.num_test is None:
        return not config.official_test
    total = published_sizes(config.data)[1]
    return None if total is None else config.num_test < total


def redraws(config: TrialConfig) -> tuple[str, ...]:
    """What a seed redraws."""
    if not config.official_test or config.evaluate_on == "val":
        return "split", *_ALWAYS
    trained = {
        True: ("training split",), None: (f"training images where there are more than {config.num_train}",), False: ()
    }[redraws_training(config)]  # fmt: skip
    tested = {
        True: ("part of the published test split",),
        None: (f"test images where more than {config.num_test} were published",),
        False: (),
    }[redraws_test(config)]
    return (*trained, *tested, *_ALWAYS)


def enumerated(words: tuple[str, ...]) -> str:
    """The words separated by commas, with "and" before the last one."""
    return " and ".join((", ".join(words[:-1]), words[-1]))


def over(config: TrialConfig) -> str:
    """The sources of variation that the intervals over seeds include, and what they hold for."""
    if not config.official_test or config.evaluate_on == "val":
        return "the intervals include the variation over splits; they hold for this data set, net and schedule only"
    trained = {
        True: "include the variation over training splits",
        None: f"include the variation over training splits if there are more than {config.num_train} training images",
        False: "include no variation over splits: every seed trains on the same images",
    }[redraws_training(config)]
    tested = {
        True: "test images are drawn from the published ones",
        None: f"the {config.num_test} test images are the published ones, or drawn from them if there are more",
        False: "the test split is the published one for every seed",
    }[redraws_test(config)]
    return f"the intervals {trained}, {tested}; they hold for this data set, net and schedule only"
