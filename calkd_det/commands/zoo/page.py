"""The tables of what each detector of mmdet learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from calkd_det.commands.pages import table
from calkd_det.commands.zoo.student import Student
from calkd_det.knowledge import KINDS

INTRODUCTION = """\
# The model zoo: what each detector learns

`{command}` writes this page. It walks the configs of detectors and trackers in mmdet's package,
builds each model as a student without weights, and finds which kinds of knowledge a teacher can
give it. A number in the table is that of a reason below it.

In the last column, a detector with random weights was taught by itself for one step on a small
batch of noise, by all that it learns. `yes`: each loss of distillation was zero, and all gradients
were finite. This is done once for each pair of detector and heads, with the smallest model.
"""


def summarise(students: Sequence[Student]) -> str:
    """Return a sentence with the numbers of configs."""
    built = [student for student in students if student.head]
    refused = [student for student in students if student.refused_class]
    counts = ', '.join(f'{sum(s.learns(kind) for s in built)} {kind}' for kind in KINDS)
    return (
        f'Of {len(students)} configs, {len(built)} are built as students: {counts}. '
        f'{len(refused)} are of classes that cannot be distilled, '
        f'{sum(bool(s.unreadable) for s in students)} need what is not installed here, '
        f'{sum(bool(s.fault) for s in students)} end in an error that gives no reason.'
    )


def format_page(students: Sequence[Student], steps: dict[tuple, str], command: str) -> str:
    """Return the page in Markdown.

    Args:
        students: What was found of each config.
        steps: How a step went, by :func:`step_key`.
        command: The command that found it.
    """
    reasons: dict[str, int] = {}
    rows = [['family', '`model.type`', 'heads', 'configs', 'class', 'box', 'features', 'by itself']]
    built = sorted((s for s in students if s.head), key=_group)
    for _, members in groupby(built, key=_group):
        group = list(members)
        first = group[0]
        cells = [_cell(first.refused.get(kind, 'yes'), reasons) for kind in KINDS]
        rows.append(
            [
                first.config.family,
                f'`CalKD{first.detector}`',
                first.head,
                str(len(group)),
                *cells,
                _cell(steps.get(step_key(first), ''), reasons),
            ]
        )
    notes = [f'{number}. {reason}' for reason, number in reasons.items()]
    sections = [
        INTRODUCTION.format(command=command),
        summarise(students) + '\n',
        table(rows, texts=3) + '\n' if built else '',
        '\n'.join(notes) + '\n' if notes else '',
        _section('Classes that cannot be distilled', [s.refused_class for s in students]),
        _section('Not built here', [s.unreadable for s in students]),
        _section('Errors without a reason', [s.fault for s in students]),
    ]
    return '\n'.join(section for section in sections if section)


def step_key(student: Student) -> tuple:
    """Return what students of one step have in common: detector, heads and what they learn."""
    return student.detector, student.head, tuple(k for k in KINDS if student.learns(k))


def _cell(outcome: str, reasons: dict[str, int]) -> str:
    """Return ``yes``, nothing, or the number of a reason, which is added where it is new."""
    if outcome in ('', 'yes'):
        return outcome
    return str(reasons.setdefault(outcome, len(reasons) + 1))


def _group(student: Student) -> tuple:
    reasons = tuple(student.refused.get(kind, '') for kind in KINDS)
    return student.config.family, student.detector, student.head, reasons


def _section(title: str, reasons: Sequence[str]) -> str:
    """Return a table of reasons with the number of configs of each; '' where there is none."""
    counts = Counter(filter(None, reasons))
    if not counts:
        return ''
    rows = [['because', 'configs'], *([reason, str(n)] for reason, n in counts.items())]
    return f'## {title}\n\n{table(rows)}\n'
