"""Sentences on results. What they claim follows from intervals alone."""

from __future__ import annotations

from collections.abc import Sequence

from calkd_det.commands.study.statistics import (
    Explained,
    Interval,
    PairedDifference,
    difference_of_explained,
    pairs_needed,
    smallest_difference,
)


def excludes_zero(interval: Interval | None) -> bool:
    """Return whether an interval is there and leaves zero out; its ends belong to it."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def points(value: float) -> str:
    """Write a difference of mAP in points, signed: 0.0123 is +1.23."""
    text = f'{100 * value:+.2f}'
    return '0.00' if text in ('+0.00', '-0.00') else text.replace('-', '−')


def percent(value: float) -> str:
    """Write an mAP in [0, 1] in percent."""
    return f'{100 * value:.1f}'.replace('-', '−')


def ends(interval: Interval | None) -> str:
    """Write an interval of a difference of mAP, in points."""
    return '' if interval is None else f'{points(interval[0])} to {points(interval[1])}'


def difference_sentence(of: str, to: str, found: PairedDifference) -> str:
    """Say what a paired difference shows: it is claimed only if its interval leaves zero out.

    Args:
        of: What is compared.
        to: With what.
        found: ``of`` less ``to``, in mAP in [0, 1].
    """
    seeds = f'{found.improved} of {found.count} seeds higher'
    interval = f'95 % interval {ends(found.interval)}' if found.interval else 'no interval'
    facts = f'{points(found.mean)} points, {interval}, {seeds}'
    if not excludes_zero(found.interval):
        return f'{of} against {to}: **no difference shown** ({facts}).'
    word = 'higher' if found.mean > 0 else 'lower'
    return f'{of} is **{word}** than {to} ({facts}).'


def explained_sentence(name: str, found: Explained | None) -> str:
    """Say what a predictor explains of the students' mAP, by the interval of its slope."""
    if found is None:
        return f'{name}: not enough teachers, or all the same, to fit a line.'
    if found.interval is None or found.slope_interval is None:
        return f'{name}: R² = {found.r_squared:.2f}; too few teachers for an interval.'
    facts = (
        f'R² = {found.r_squared:.2f}, 95 % interval {found.interval[0]:.2f} to '
        f'{found.interval[1]:.2f}'
    )
    if not excludes_zero(found.slope_interval):
        return f'{name}: **no relation shown**, the slope may be zero ({facts}).'
    way = 'rises' if found.slope > 0 else 'falls'
    return f"{name}: the students' mAP **{way}** with it ({facts})."


def rivals_sentence(name: str, a: Explained | None, other: str, b: Explained | None) -> str:
    """Say which of two predictors explains more, by the interval of the difference of R²."""
    if a is None or b is None:
        return f'{name} and {other} cannot be compared yet.'
    mean, interval = difference_of_explained(a, b)
    difference = f'{mean:+.2f}'.replace('-', '−')
    if interval is None:
        return f'{name} against {other}: too few teachers for an interval.'
    low_high = ' to '.join(f'{end:+.2f}' for end in interval).replace('-', '−')
    facts = f'difference of R² {difference}, 95 % interval {low_high}'
    if not excludes_zero(interval):
        return (
            f'Whether {name} explains more of the students than {other} is **not shown** ({facts}).'
        )
    word = 'more' if mean > 0 else 'less'
    return f'{name} explains **{word}** of the students than {other} ({facts}).'


def temperature_sentence(name: str, temperature: float, interval: Interval | None) -> str:
    """Say how a teacher's confidence stands, by the interval of its fitted T."""
    if interval is None:
        return f'{name}: fitted T = {temperature:.2f}, without an interval.'
    facts = f'fitted T = {temperature:.2f}, 95 % interval {interval[0]:.2f} to {interval[1]:.2f}'
    if interval[0] > 1:
        return f'{name} is **over-confident** on held-out images ({facts}).'
    if interval[1] < 1:
        return f'{name} is **under-confident** on held-out images ({facts}).'
    return f'{name}: neither over- nor under-confidence shown on held-out images ({facts}).'


def chance_sentence(count: int, excluding: int) -> str:
    """Say how many of several intervals would leave zero out by chance."""
    if count == 0:
        return ''
    return (
        f'{excluding} of the {count} intervals leave zero out; without any true difference '
        f'{0.05 * count:.1f} would on average.'
    )


def power_sentence(
    sd: float, degrees: int, target: float, forms: Sequence[tuple[str, float, int]]
) -> str:
    """Say what the seeds can tell.

    Args:
        sd: What neither cell nor seed explains, mAP in [0, 1].
        degrees: Degrees of freedom of it.
        target: In points.
        forms: Of each form of comparisons a name, the standard deviation of a paired difference,
            mAP in [0, 1], and the number of seeds.
    """
    told = '; '.join(
        f'{100 * smallest_difference(spread, pairs):.2f} points for {name} with {pairs} seeds '
        f'({target:g} points would take {pairs_needed(spread, target / 100)})'
        for name, spread, pairs in forms
    )
    return (
        f'What neither cell nor seed explains of a run spreads by {100 * sd:.2f} points (SD, '
        f'{degrees} degrees of freedom). With that, the smallest true difference told from zero '
        f'with power 0.8 (two-sided paired t test, 5 %) is {told}.'
    )
