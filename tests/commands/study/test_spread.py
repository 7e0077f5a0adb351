"""Ways to spend computing time on a study, compared by the rows that are kept."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import helpers
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope='module')
def spread() -> ModuleType:
    return helpers.load_tool('spread', 'docs/evidence')


def made_rows(spread: ModuleType, noise: dict[str, float], cells: int, seeds: int) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        of_seed = rng.normal(0, 0.1)
        for cell in range(cells):
            gain = 0.02 * (cell > 0)
            found = {
                way: 0.2 + of_seed + gain + float(rng.normal(0, sd)) for way, sd in noise.items()
            }
            name = f'cell {cell}' if cell else 'alone'
            rows.append(
                {
                    'hash': f'{cell}-{seed}',
                    'cell': name,
                    'seed': seed,
                    'map': found,
                    'seconds_per_image': 0.05,
                }
            )
    return rows


def test_spread_time_and_gain_of_made_up_rows(spread: ModuleType) -> None:
    """A student takes 100 s, 40 of them for 800 images."""
    noise = {f'{count} images': 0.01 for count in spread.IMAGES}
    noise['3200 images'] = 0.005
    noise |= {spread.OF_EVALUATIONS: 0.01, spread.OF_WEIGHTS: 0.01}
    rows = made_rows(spread, noise, cells=10, seeds=100)
    lines = spread.compare(rows, {row['hash']: 100.0 for row in rows})
    found = {line[0]: [float(cell) for cell in line[1:]] for line in lines[1:]}
    assert list(found) == list(noise)
    # Of a difference of two cells: the root of 2 times 1 and 0.5 points.
    assert found[spread.AS_NOW][0] == pytest.approx(1.41, rel=0.06)
    assert found['3200 images'][0] == pytest.approx(0.71, rel=0.06)
    times = {way: values[1] for way, values in found.items()}
    expected = {'400 images': 0.8, '800 images': 1.0, '1600 images': 1.4, '3200 images': 2.2}
    assert times == expected | {spread.OF_EVALUATIONS: 1.8, spread.OF_WEIGHTS: 1.0}
    assert found[spread.AS_NOW][2] == 1
    assert found['3200 images'][2] == pytest.approx(2.2 / 4, rel=0.15)
    assert all(values[3] == pytest.approx(2, abs=0.4) for values in found.values())


def test_spread_and_interval_of_made_up_schedules(spread: ModuleType) -> None:
    rows = [
        {'name': row['cell'], 'seed': row['seed'], 'metrics': {'mAP': row['map']['way']}}
        for row in made_rows(spread, {'way': 0.01}, cells=2, seeds=400)
    ]
    heading, line = spread.compare_schedules({'mine': rows})
    found = dict(zip(heading, line))
    assert found['way'] == 'mine'
    assert float(found['spread of a difference']) == pytest.approx(1.41, rel=0.1)
    low, high = map(float, found['95 % interval'].split(' to '))
    assert low < 1.41 < high
    assert high / low == pytest.approx(1.15, abs=0.01)  # chi-squared with 399 degrees of freedom
    assert found['students'] == '800'


def test_mean_weights(spread: ModuleType) -> None:
    states = [
        {'weight': torch.tensor([value, 1.0]), 'steps': torch.tensor(int(10 * value))}
        for value in (1.0, 2.0, 6.0)
    ]
    mean = spread._mean_of(states)
    assert mean['weight'].tolist() == [3.0, 1.0]
    assert mean['steps'].item() == 30
    assert mean['steps'].dtype == torch.int64


def test_the_tables_of_the_page_are_those_of_the_rows(spread: ModuleType) -> None:
    study = spread.read_study(spread.STUDY)
    trained = {row['hash']: row['seconds'] for row in spread.study_rows(ROOT / study.results)}
    rows = spread.read_rows()
    assert len(rows) == sum(len(cell.seeds) for cell in study.cells.values())
    scheduled = spread.scheduled()
    assert {len(of_way) for of_way in scheduled.values()} == {8}
    for name in list(spread.SCHEDULES.values())[1:]:
        runs = spread.expand([spread.read_study(spread.STUDY.with_name(f'{name}.py'))])
        own = {row['hash'] for row in spread.study_rows(ROOT / runs[0].study.results)}
        assert {run.hash for run in runs} <= own
    blocks = {
        'spread': spread.table(spread.compare(rows, trained)),
        'schedules': spread.table(spread.compare_schedules(scheduled)),
    }
    page = spread.PAGE.read_text('utf-8')
    assert spread.fill_blocks(page, blocks) == page
