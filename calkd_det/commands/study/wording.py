"""Sentences on results. What they claim follows from corrected p-values alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calkd_det.commands.study.power import pairs_needed, smallest_difference
from calkd_det.commands.study.relations import Relation, Rivalry
from calkd_det.commands.study.statistics import Interval, PairedDifference, Spread


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


def p_text(value: float) -> str:
    """Write a p-value."""
    return 'p < 0.001' if value < 0.001 else f'p = {value:.3f}'


def difference_sentence(of: str, to: str, found: PairedDifference) -> str:
    """Say what a paired difference shows; it is claimed by its corrected p-value alone.

    Args:
        of: What is compared.
        to: With what.
        found: ``of`` less ``to``, in mAP in [0, 1].
    """
    seeds = f'{found.improved} of {found.count} seeds higher'
    tested = 'not tested'
    if found.interval is not None:
        tested = f'95 % interval {ends(found.interval)}, {p_text(found.adjusted_p)}'
    facts = f'{points(found.mean)} points, {tested}, {seeds}'
    if not found.shown:
        return f'{of} against {to}: **no difference shown** ({facts}).'
    word = 'higher' if found.mean > 0 else 'lower'
    return f'{of} is **{word}** than {to} ({facts}).'


def relation_sentence(name: str, found: Relation | None) -> str:
    """Say what a predictor explains of the students' mAP, by its corrected p-value."""
    if found is None:
        return f'{name}: too few teachers or seeds, or all the same, to fit a line.'
    facts = f'R² = {found.r_squared:.2f}, {p_text(found.adjusted_p)}'
    if not found.shown:
        return f'{name}: **no relation shown**, the slope may be zero ({facts}).'
    way = 'rises' if found.slope > 0 else 'falls'
    return f"{name}: the students' mAP **{way}** with it ({facts})."


def rivals_sentence(found: Rivalry) -> str:
    """Say which of two predictors explains more, by the corrected p-value."""
    difference = f'{found.more:+.2f}'.replace('-', '−')
    facts = f'difference of R² {difference}, {p_text(found.adjusted_p)}'
    if not found.shown:
        return (
            f'Whether {found.name} or {found.other} explains more of the students is **not shown** '
            f'({facts}).'
        )
    word = 'more' if found.more > 0 else 'less'
    return f'{found.name} explains **{word}** of the students than {found.other} ({facts}).'


def temperature_sentence(
    name: str, temperature: float, interval: Interval | None, over: float, under: float
) -> str:
    """Say how a teacher's confidence stands, by its fitted T and its errors at T = 1.

    Args:
        name: The teacher's.
        temperature: Its fitted T.
        interval: That of T, None without one.
        over: The over-confident part of its ECE.
        under: The under-confident part.
    """
    if interval is None:
        return f'{name}: fitted T = {temperature:.2f}, without an interval.'
    facts = f'fitted T = {temperature:.2f}, 95 % interval {interval[0]:.2f} to {interval[1]:.2f}'
    if interval[0] <= 1 <= interval[1]:
        return f'{name}: neither over- nor under-confidence shown on held-out images ({facts}).'
    side = 'over' if interval[0] > 1 else 'under'
    # The background of a head of sigmoids can rule its T, and its objects the ECE.
    if (over > under) != (side == 'over'):
        return (
            f'{name}: one T does not describe its confidence on held-out images ({facts}; but its '
            f'top-label ECE at T = 1 is {100 * over:.2f} % over- and {100 * under:.2f} % '
            'under-confident).'
        )
    return f'{name} is **{side}-confident** on held-out images ({facts}).'


def family_sentence(tests: int, shown: int) -> str:
    """Say how many tests a study's p-values are corrected for, and how many show something."""
    return (
        f"p is after Holm's correction for all {tests} tests of this study, {shown} of which "
        f'{"shows" if shown == 1 else "show"} something (p < 0.05). Were there no true difference '
        'at all, a study would show any in at most one case of twenty.'
    )


def spread_sentence(spread: Spread) -> str:
    """Say what neither cell nor seed explains, and what the intervals rest on.

    Args:
        spread: In mAP in [0, 1], with at least one degree of freedom.
    """
    text = (
        f'What neither cell nor seed explains of a run spreads by {100 * spread.sd:.2f} points '
        f'(SD, {spread.degrees} degrees of freedom).'
    )
    if spread.uneven:
        return (
            f"{text} **The cells do not spread alike** (Levene's test, {p_text(spread.alike_p)}): "
            'each interval is the wider one of that by this SD and that by the differences of its '
            'own seeds. What difference can be told is not computed.'
        )
    alike = (
        ''
        if math.isnan(spread.alike_p)
        else (f" That cells spread alike is not refuted (Levene's test, {p_text(spread.alike_p)}).")
    )
    return f'{text}{alike} All intervals of differences are by this SD.'


def power_sentence(
    target: float, forms: Sequence[tuple[str, float, int]], degrees_per_pair: float
) -> str:
    """Say what the seeds can tell.

    Args:
        target: In points.
        forms: Of each form of comparisons a name, the standard deviation of a paired difference,
            mAP in [0, 1], and the number of seeds.
        degrees_per_pair: As in :func:`smallest_difference`.
    """
    told = '; '.join(
        f'{100 * smallest_difference(spread, pairs, degrees_per_pair):.2f} points for {name} with '
        f'{pairs} seeds ({target:g} points would take '
        f'{pairs_needed(spread, target / 100, degrees_per_pair)})'
        for name, spread, pairs in forms
    )
    return (
        'The smallest true difference told from zero with power 0.8 (two-sided t test, 5 %, before '
        f'any correction) is {told}.'
    )
