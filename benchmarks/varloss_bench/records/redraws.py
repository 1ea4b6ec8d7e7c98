"""What a seed redraws, and what it does not, told from a trial's configuration (`data.split_indices` does it)."""

from varloss_bench.config import TrialConfig
from varloss_bench.datasets import published_sizes

_ALWAYS = ("labelled subsets", "weights", "order", "augmentations")


def redraws_training(config: TrialConfig) -> bool | None:
    """Whether seeds differ in the images that they train on; None where the number of all images is not known.

    With a drawn test split or a validation split they do: all splits are drawn from the same images.
    """
    if not config.official_test or config.num_train is None or config.num_val != 0:
        return True
    total = published_sizes(config.data)[0]
    return None if total is None else config.num_train < total


def redraws_test(config: TrialConfig) -> bool | None:
    """Whether seeds differ in their test images, which are else all that were published as such; None as above."""
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
    """With commas, and "and" before the last."""
    return " and ".join((", ".join(words[:-1]), words[-1]))


def over(config: TrialConfig) -> str:
    """What the intervals over seeds are over, and what they speak of."""
    if not config.official_test or config.evaluate_on == "val":
        return "the intervals are over splits too, and speak of this data set, net and schedule only"
    trained = {
        True: "are over training splits",
        None: f"are over training splits where there are more than {config.num_train} training images",
        False: "are over no splits: every seed trains on the same images",
    }[redraws_training(config)]
    tested = {
        True: "test images are drawn from the published ones",
        None: f"the {config.num_test} test images are the published ones, or drawn from them where there are more",
        False: "the test split is the published one at every seed",
    }[redraws_test(config)]
    return f"the intervals {trained}, {tested}; they speak of this data set, net and schedule only"
