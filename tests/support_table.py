"""Writes the tables of docs/detectors.md from what the tests of all detectors run on.

python tests/support_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'tests'), str(ROOT / 'tests' / 'detectors')]

import helpers  # noqa: E402
from cases import Case  # noqa: E402
from torch import nn  # noqa: E402

from calkd_det.commands.pages import fill_blocks  # noqa: E402
from calkd_det.taps import find_tap  # noqa: E402
from calkd_det.taps.refused import REFUSED  # noqa: E402

PAGE = ROOT / 'docs' / 'detectors.md'


def support_table(cases: list[Case], losses: dict[str, type[nn.Module]]) -> str:
    """One line a case: both detectors, what is classified, the losses that were tried on it."""
    lines = [
        "| case | `model.type` | student's head | teacher's head | samples | kinds "
        '| class losses |',
        '|---|---|---|---|---|---|---|',
    ]
    for case in cases:
        student, teacher = helpers.build(case.student), helpers.build(case.teacher)
        tap = find_tap(student, 'model')
        fitting = [
            f'`{name}`' for name, cls in losses.items() if cls.activation == tap.activation(student)
        ]
        lines.append(
            f'| {case.name} | `{case.detector}` | {_head(student)} | {_head(teacher)} '
            f'| {_samples(str(tap.geometry(student)))} | {_kinds(student, teacher)} '
            f'| {", ".join(fitting)} |'
        )
    return '\n'.join(lines)


def _kinds(student: nn.Module, teacher: nn.Module) -> str:
    """The kinds of knowledge that both detectors have."""
    names = {'class': 'classes', 'box': 'boxes'}
    both = [find_tap(detector, 'model').kinds(detector) for detector in (student, teacher)]
    return ', '.join(
        [name for kind, name in names.items() if kind in both[0] & both[1]] + ['features']
    )


def refused_table() -> str:
    """One line a head or loss that was tried and refused, with the reason."""
    lines = ['| refused | because |', '|---|---|']
    return '\n'.join(lines + [f'| `{name}` | {reason} |' for name, reason in REFUSED.items()])


def filled_page() -> str:
    """The page with both tables as they are now."""
    from pairs import CASES
    from test_every_detector import LOSSES

    blocks = {'support': support_table(CASES, LOSSES), 'refused': refused_table()}
    return fill_blocks(PAGE.read_text('utf-8'), blocks)


def _head(detector: nn.Module) -> str:
    heads = (getattr(detector, name, None) for name in ('roi_head', 'bbox_head', 'panoptic_head'))
    return f'`{type(next(head for head in heads if head is not None)).__name__}`'


def _samples(words: str) -> str:
    """Without the sizes of anchors."""
    return words.split(' (')[0]


if __name__ == '__main__':
    from mmdet.utils import register_all_modules

    register_all_modules()
    PAGE.write_text(filled_page(), encoding='utf-8')
