"""Writes the demo's report in Markdown; every number in it is one of a run's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from calkd_det.commands.demo.plan import (
    CALKD,
    CALKD_AS_PLAIN,
    EVALUATIONS,
    STUDENT,
    TRAININGS,
)

COLUMNS = {
    'mAP': 'coco/bbox_mAP',
    'AP50': 'coco/bbox_mAP_50',
    'AP75': 'coco/bbox_mAP_75',
    'APs': 'coco/bbox_mAP_s',
    'APm': 'coco/bbox_mAP_m',
}
MAP = COLUMNS['mAP']

CAUTION = (
    'One seed proves nothing: with another one every figure comes out differently, by how much is '
    'not measured here. This demo shows that everything runs, not that one method wins.'
)

Metrics = Mapping[str, Mapping[str, float]]


def result_table(metrics: Metrics) -> str:
    """Returns a Markdown table of every evaluation, aligned so that it also reads as text.

    Args:
        metrics: By the evaluation's name, then by mmdet's names, in [0, 1].
    """
    alone = metrics[STUDENT.name].get(MAP)
    rows = [['detector', *COLUMNS, 'mAP − student alone']]
    for evaluation in (*EVALUATIONS, CALKD_AS_PLAIN):
        found = metrics[evaluation.name]
        distilled = evaluation.training.distilled and None not in (alone, found.get(MAP))
        rows.append(
            [
                evaluation.title,
                *(_percent(found.get(name)) for name in COLUMNS.values()),
                f'{100 * (found[MAP] - alone):+.1f}' if distilled else '',
            ]
        )
    return table(rows)


def plain_config_sentence(metrics: Metrics) -> str:
    """Says whether CalKD's checkpoint scores the same in the plain student's config."""
    distilled = metrics[CALKD.name].get(MAP)
    plain = metrics[CALKD_AS_PLAIN.name].get(MAP)
    outcome = 'the same' if distilled == plain else 'NOT the same, which is a bug'
    return (
        "CalKD's checkpoint gives an mAP of "
        f'{_percent(distilled)} through its own config and {_percent(plain)} through the plain '
        f"student's, which knows neither teacher nor distillation: {outcome}."
    )


def calibration_section(calibration: Mapping[str, Any], picture: str) -> list[str]:
    """Says how calibrated the teacher is, and which T would make its scores most likely.

    Args:
        calibration: The content of the file that ``tools/calibrate_teacher.py`` wrote.
        picture: The reliability diagram, relative to the report.
    """
    interval = calibration['interval_95']
    fitted = f'T = {calibration["temperature"]:.2f}' + (
        '' if interval is None else ' (95 % interval {:.2f} to {:.2f})'.format(*interval)
    )
    rows = [
        ['', 'T = 1', fitted],
        *(
            [title, *(f'{100 * calibration[when][name]:.2f} %' for when in ('before', 'after'))]
            for name, title in (
                ('ece', 'ECE'),
                ('ece_over', 'of it over-confident'),
                ('ece_under', 'of it under-confident'),
                ('mean_confidence', 'mean confidence'),
                ('mean_accuracy', 'accuracy'),
            )
        ),
    ]
    return [
        f'On the {calibration["num_samples"]:,} RoIs that distillation would sample of the '
        f'{calibration["data"]["num_images"]} held-out calibration images, the negative '
        f"log-likelihood of the teacher's scores is least at {fitted}. CalKD here uses the "
        "method's default of T = 1.5, which aims at a slightly under-confident teacher, whatever "
        'was fitted.',
        '',
        table(rows),
        '',
        f'![Reliability of the teacher before and after]({picture})',
        '',
        *(f'> {sentence}\n' for sentence in calibration['warnings']),
    ]


def compose(
    metrics: Metrics,
    calibration: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    other_commands: Sequence[str],
    num_images: Mapping[str, int],
    pictures: Mapping[str, str],
) -> str:
    """Returns the whole report.

    Args:
        metrics: See :func:`result_table`.
        calibration: See :func:`calibration_section`.
        records: What the demo noted of each training, by its name.
        other_commands: The command lines of calibration and tests.
        num_images: Images by split.
        pictures: File names of ``curves``, ``detections`` and ``reliability``.
    """
    attempts = {run.name: records[run.name]['attempts'] for run in TRAININGS}
    everything = [attempt for tries in attempts.values() for attempt in tries]
    commands = [
        *(attempt['command'] for tries in attempts.values() for attempt in tries),
        *other_commands,
    ]
    minutes = [
        [run.title, f'{sum(attempt["seconds"] for attempt in attempts[run.name]) / 60:.1f}']
        for run in TRAININGS
    ]
    facts = {
        'date': f'{datetime.now():%Y-%m-%d %H:%M}',
        'seed': _distinct(attempt['seed'] for attempt in everything),
        'epochs': _distinct(attempt['epochs'] for attempt in everything),
        'images': ', '.join(f'{count} {split}' for split, count in num_images.items()),
        'device': _distinct(attempt['device'] for attempt in everything),
        'versions': _distinct(attempt['versions'] for attempt in everything),
    }
    return '\n'.join(
        [
            '# Demo: distilling on the mini data set',
            '',
            'A teacher, a small student trained alone, and the same student distilled from that '
            'teacher: as it is (KD), and calibrated by a temperature (CalKD). The students share '
            'their seed, so also their initial weights and the '
            'order of their images.',
            '',
            '## Results',
            '',
            'COCO metrics in percent on the validation images, from the last epoch.',
            '',
            result_table(metrics),
            '',
            f'**{CAUTION}**',
            '',
            plain_config_sentence(metrics),
            '',
            "## The teacher's calibration",
            '',
            *calibration_section(calibration, pictures['reliability']),
            '## Losses and teacher',
            '',
            f'![Losses of the three students]({pictures["curves"]})',
            '',
            '## Detections',
            '',
            'Evenly spaced validation images, chosen by their ids alone.',
            '',
            f'![Detections beside the ground truth]({pictures["detections"]})',
            '',
            '## What was run',
            '',
            *(f'- {name}: {value}' for name, value in facts.items()),
            '',
            '```bash',
            *commands,
            '```',
            '',
            'Wall-clock time of each training, for information: two ran at a time where the '
            'machine has two cores or more, whatever else it had to do.',
            '',
            table([['training', 'minutes'], *minutes]),
            '',
        ]
    )


def _percent(value: float | None) -> str:
    # mmdet writes -1 where no object of that size is annotated, and nothing without detections.
    return '–' if value is None or value < 0 else f'{100 * value:.1f}'


def _distinct(values: Iterable[Any]) -> str:
    return '; '.join(dict.fromkeys(str(value) for value in values))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, aligned so that it also reads as text; its head is first."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    aligned = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        for row in (rows[0], rule, *rows[1:])
    ]
    return '\n'.join(f'| {" | ".join(row)} |' for row in aligned)
