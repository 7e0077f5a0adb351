"""A study that nothing is trained for, and rows as its runs would have left them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from calkd_det.calibration import reliability_from_confidences
from calkd_det.commands.study.design import Study
from calkd_det.commands.study.rows import append_row
from calkd_det.commands.study.settings import parse_study
from calkd_det.measurement.teacher_calibration import TEMPERATURES, bins_of

KD = dict(type='KDLoss')
SEEDS = [0, 1, 2, 3, 4]
STUDENT = 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'
TEACHER = 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """A study's dict."""
    config_path = __import__('calkd_det').config_path
    cells = [dict(name='alone')]
    for teacher in ('calibrated', 'over-confident'):
        for t in (0.5, 1.0, 2.0):
            cells.append(
                dict(name=f'{teacher}, T = {t:g}', teacher=teacher, temperature=t, loss=KD)
            )
    return {
        'name': 'made-up',
        'data': dict(mini=dict(out_dir=str(folder / 'data'), num_images=dict(train=8))),
        'student': dict(name='small', config=config_path(STUDENT)),
        'teachers': [
            dict(name=name, config=config_path(TEACHER), seed=seed)
            for seed, name in enumerate(('calibrated', 'over-confident'))
        ],
        'cells': cells,
        'seeds': SEEDS,
        'comparisons': [
            dict(of='calibrated, T = 1', to='alone'),
            dict(of='over-confident, T = 2', to='over-confident, T = 1'),
            dict(of=['calibrated, T = 2', 'calibrated, T = 0.5'], to='calibrated, T = 1', name='m'),
        ],
        'figures': ['temperature', 'paired', 'reliability'],
        'reliability': ['calibrated', 'over-confident'],
        'work_dir': str(folder / 'runs'),
        **changes,
    }


def study(folder: Path, **changes: Any) -> Study:
    """The study."""
    return parse_study(content(folder, **changes))


def calibration(temperature: float, ece: float, accuracy: float) -> dict[str, Any]:
    """What a teacher's measurement leaves of one set of images."""
    import torch

    generator = torch.Generator().manual_seed(0)
    confidences = torch.rand(2000, generator=generator).sqrt()
    hits = torch.rand(2000, generator=generator) < confidences - ece
    bins = bins_of(reliability_from_confidences(confidences.double(), hits))
    values = dict(
        nll=0.5, ece=ece, ece_over=0.9 * ece, ece_under=0.1 * ece, ace=0.8 * ece, brier=0.3,
        mce=0.2, mean_accuracy=accuracy, mean_confidence=accuracy + ece,
    )  # fmt: skip
    return {
        'images': 100,
        'temperature': temperature,
        'interval': [temperature - 0.05, temperature + 0.06],
        'at_bound': False,
        'samples': 2000,
        'foreground_share': 0.25,
        'foreground': dict(accuracy=0.5, ece=0.1, confidence=0.6),
        'at': {f'{t:g}': values for t in (*TEMPERATURES,)} | {'fitted': values},
        'bins': {'1': bins, 'fitted': bins},
    }


def teacher_row(name: str, digest: str, value: float, temperature: float, ece: float) -> dict:
    """A teacher's row."""
    return {
        **common('teacher', digest, name, 0, value),
        'settings': {'teacher': name},
        'calibration': {
            'held_out': calibration(temperature, ece, 0.8 + value / 3),
            'training': calibration(0.8, 0.02, 0.95),
        },
    }


def student_row(
    name: str,
    seed: int,
    value: float,
    teacher: str | None = None,
    temperature: Any = None,
    *,
    base: str = 'base',
    teacher_hash: str | None = None,
    order: str = 'order',
) -> dict:
    """A student's row."""
    row = {
        **common('student', f'{name} {seed} {base}', name, seed, value),
        'base_hash': base,
        'settings': {
            'student': 'small',
            'teacher': teacher,
            'temperature': temperature,
            'loss': KD if teacher else None,
        },
        'fingerprint': {
            'initial_weights': f'weights {seed}',
            'data_order': order,
            'iterations': 9,
            'resumed': False,
        },
    }
    if teacher:
        row['teacher'] = {'name': teacher, 'hash': teacher_hash or teacher, 'T': temperature}
    return row


def classifier(value: float) -> dict:
    """What a student's measurement leaves, with figures that follow from one number."""
    figures = dict(samples=50, accuracy=0.5 + value, nll=1 - value, brier=0.6 - value, ece=0.1)
    return {'images': 9, 'objects': figures, 'distillation': {**figures, 'ece': 0.2 - value}}


def common(kind: str, digest: str, name: str, seed: int, value: float) -> dict:
    return {
        'kind': kind,
        'hash': digest,
        'base_hash': digest,
        'study': 'made-up',
        'name': name,
        'seed': seed,
        'metrics': {'mAP': value, 'AP50': value + 0.1, 'AP75': value - 0.1},
        'data': 'digest',
        'seconds': 60.0 + seed,
        'device': 'abacus',
        'versions': {'torch': '0'},
    }


def write_rows(made: Study, gains: dict[str, float], noise: float = 0.001) -> None:
    """Rows of all runs: a cell's mAP is 0.2, its gain, the seed's own luck, and noise."""
    rng = random.Random(0)
    facts = {'calibrated': (0.3, 1.02, 0.01), 'over-confident': (0.25, 1.9, 0.09)}
    for name in made.teachers:
        value, temperature, ece = facts[name]
        append_row(made.results, teacher_row(name, name, value, temperature, ece))
    for cell in made.cells.values():
        for seed in cell.seeds:
            value = 0.2 + 0.01 * seed + gains.get(cell.name, 0) + rng.uniform(-noise, noise)
            row = student_row(cell.name, seed, value, cell.teacher, cell.temperature)
            append_row(made.results, row)


def write_classifiers(made: Study, gains: dict[str, float], noise: float = 0.001) -> None:
    """Add the classifier's figures to the rows of students that are there."""
    rng = random.Random(1)
    rows = [json.loads(line) for line in made.results.read_text().splitlines()]
    for row in rows:
        if row['kind'] == 'student':
            value = 0.01 * row['seed'] + gains.get(row['name'], 0) + rng.uniform(-noise, noise)
            row['classifier'] = classifier(value)
    made.results.write_text(''.join(json.dumps(row) + '\n' for row in rows))
