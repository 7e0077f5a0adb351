"""Count the false claims of the report on simulated studies without any true difference.

From the root of the repository::

    python docs/evidence/null_studies.py

simulates studies of the designs whose rows are kept, tests them as the report does, and writes the
table into docs/evidence.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from calkd_det.commands.pages import fill_blocks, table
from calkd_det.commands.study.results import Findings, find
from calkd_det.commands.study.selection import Selection, select
from calkd_det.commands.study.settings import read_study
from calkd_det.commands.study.statistics import SIGNIFICANCE, common_spread

ROOT = Path(__file__).resolve().parents[2]
STUDIES = (
    'controlled', 'teachers', 'methods', 'knowledge_faster', 'knowledge_retina', 'knowledge_dino',
    'dense_retina', 'dense_gfl', 'unseen_images', 'weight_and_temperature',
    'student_calibration',
)  # fmt: skip
COUNT = 2000
SEED = 0
NOISE = {False: 'alike', True: "each cell's own"}


def selection_of(name: str) -> Selection:
    """Return the kept rows of a study."""
    study = read_study(ROOT / 'configs' / 'studies' / f'{name}.py')
    return select(dataclasses.replace(study, results=ROOT / study.results))


def null_findings(
    selection: Selection, count: int, rng: np.random.Generator, *, own_noise: bool
) -> Iterator[Findings]:
    """Simulate studies of the same cells, seeds and teachers, all of whose cells are alike.

    A run's mAP is that of its seed plus normal noise, rounded to three digits as mmdet does. So is
    the figure that the study is planned for, where that is another one of its row.

    Args:
        selection: The rows of a whole study.
        count: Number of studies.
        rng: Source of the noise.
        own_noise: Give each cell the spread of its own residuals in the rows; else all cells have
            the residual spread of the whole study.

    Yields:
        What the report would find.
    """
    primary = selection.study.primary
    metrics = dict.fromkeys(['mAP', *([primary.metric] if primary else [])])
    noise = {metric: _noise(selection, metric, own_noise) for metric in metrics}
    names = list(selection.study.cells)
    for _ in range(count):
        drawn = {
            metric: by_seed + spread[:, None] * rng.standard_normal((len(names), len(by_seed)))
            for metric, (by_seed, spread) in noise.items()
        }
        cells = {}
        for index, name in enumerate(names):
            cells[name] = {}
            for column, (seed, row) in enumerate(sorted(selection.cells[name].items())):
                simulated = {
                    metric: round(float(values[index, column]), 3)
                    for metric, values in drawn.items()
                }
                cells[name][seed] = {**row, 'metrics': {**row['metrics'], **simulated}}
        yield find(dataclasses.replace(selection, cells=cells))


def _noise(selection: Selection, metric: str, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the seeds, and the standard deviation of each cell's noise."""
    names = list(selection.study.cells)
    values = np.array([list(selection.values(name, metric).values()) for name in names])
    by_seed = values.mean(axis=0)
    if not own:
        common = common_spread([selection.values(name, metric) for name in names]).sd
        return by_seed, np.full(len(names), common)
    residuals = values - by_seed - values.mean(axis=1, keepdims=True) + values.mean()
    return by_seed, residuals.std(axis=1, ddof=1)


def count_claims(name: str, count: int, seed: int, *, own_noise: bool) -> dict[str, float]:
    """Return shares of simulated studies of a design.

    Returns:
        ``tests``: The number of tests of a study. ``false``: The share of studies that claim
        anything. ``uncorrected``: The same, were p-values not corrected. ``uneven``: The share
        whose cells are found not to spread alike.
    """
    rng = np.random.default_rng(seed)
    found = list(null_findings(selection_of(name), count, rng, own_noise=own_noise))
    return {
        'tests': len(found[0].tests),
        'false': float(np.mean([any(t.shown for t in one.tests) for one in found])),
        'uncorrected': float(
            np.mean([any(t.p_value < SIGNIFICANCE for t in one.tests) for one in found])
        ),
        'uneven': float(np.mean([one.spread.uneven for one in found])),
    }


def main() -> None:
    """Simulate all designs and write the table."""
    rows = [
        [
            *('design', 'noise', 'tests', 'studies with a false claim'),
            *('without the correction', 'cells found uneven'),
        ]
    ]
    for name in STUDIES:
        for own_noise, noise in NOISE.items():
            shares = count_claims(name, COUNT, SEED, own_noise=own_noise)
            percents = (f'{100 * shares[key]:.1f} %' for key in ('false', 'uncorrected', 'uneven'))
            rows.append([name, noise, str(shares['tests']), *percents])
    page = ROOT / 'docs' / 'evidence.md'
    text = table(rows)
    page.write_text(fill_blocks(page.read_text('utf-8'), {'null studies': text}), 'utf-8')
    print(text)


if __name__ == '__main__':
    main()
