"""What `--select` chose, in words."""

from collections.abc import Sequence

from varloss_bench.measures import METRICS
from varloss_bench.statistics.selection import Choice, Group, Selection


def _excluded(group: Group) -> list[str]:
    """The cells that are excluded, with the reason."""
    return [
        f"{row.arm.short_label()} ({row.failure} at seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for row in group.rows
        if row.failure
        for seeds in [{"diverged": row.diverged, "collapsed": row.collapsed, "crashed": row.crashed}[row.failure]]
    ]


def in_words(selection: Selection, test_seeds: Sequence[int]) -> str:
    """What was chosen, how close the second-best cell was, and what the numbers mean."""
    title = METRICS[selection.metric].title
    lines = [
        f"Chosen on the validation split by the mean {title} over {_seeds(selection.seeds)}. Confirmed on the test split "
        f"with {_seeds(test_seeds)}, read once."
    ]
    for group in selection.groups:
        lines.append(group.rows[0].arm.group_label())
        for name, choice in (("baseline", group.baseline), ("VRN", group.vrn)):
            lines.append(f"  {name}: {_choice_in_words(choice, selection.metric)}")
        excluded = _excluded(group)
        if excluded:
            lines.append(f"  excluded: {'; '.join(excluded)}")
        if not group.chosen:
            lines.append("  no comparison on the test split: every cell with VRN, or every cell without it, failed")
    lines.append(
        "The validation scores of the chosen cells are the best of several, so they are too high; more cells make this "
        "worse. The table below uses fresh seeds."
        + (
            " Each seed draws its splits from the same images, so an image used for the choice can be in the test split of "
            "another seed."
            if selection.drawn_test
            else ""
        )
    )
    return "\n".join(lines)


def _choice_in_words(choice: Choice | None, metric: str) -> str:
    if choice is None:
        return "none; every cell failed"
    digits = METRICS[metric].digits
    text = f"{choice.row.arm.short_label()}, {choice.row.mean(metric):.{digits}f} on validation"
    if choice.runner_up is None or choice.lead is None:
        return f"{text}, the only cell"
    text += f", best of {choice.candidates} cells; "
    runner_up = choice.runner_up.arm.short_label()
    if choice.tied:
        return f"{text}{runner_up} has the same score; the smaller weight or temperature is taken"
    lead = choice.lead
    width = f"±{lead.half_width:.{digits}f}" if lead.count > 1 else ""
    return f"{text}runner-up {runner_up}, {lead.mean:.{digits}f}{width} behind"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
