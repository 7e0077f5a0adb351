"""Compare ways to spend computing time on a study: which tells the smallest difference of mAP?

From the root of the repository, after ``calkd study configs/studies/unseen_images.py``, which keeps
the weights of the last epochs of its students::

    python docs/evidence/spread.py --measure
    python docs/evidence/spread.py

The first command evaluates those weights in each of the ways and writes ``spread.jsonl``, a row a
student; it goes on where it was interrupted. The second writes the tables into docs/evidence.md,
the one of other schedules from the rows of ``configs/studies/schedules_*.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from mmdet.apis import init_detector
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from calkd_det.commands.pages import fill_blocks, table
from calkd_det.commands.study.rows import read_rows as study_rows
from calkd_det.commands.study.runs import Run, expand
from calkd_det.commands.study.settings import read_study
from calkd_det.commands.study.statistics import Spread, common_spread
from calkd_det.datasets.mini import write_mini_dataset
from calkd_det.evaluation import UnroundedCocoMetric
from calkd_det.safe_loading import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / 'configs' / 'studies' / 'unseen_images.py'
ROWS = ROOT / 'docs' / 'evidence' / 'spread.jsonl'
PAGE = ROOT / 'docs' / 'evidence.md'
DATA = ROOT / 'data' / 'more-fashion'
BATCH_SIZE = 8
# The first of the images are those of the study.
IMAGES = (400, 800, 1600, 3200)
STUDY_IMAGES = 800
LAST_EPOCHS = 3
AS_NOW = f'{STUDY_IMAGES} images'
SCHEDULES = {
    'as now: warm-up of 100 steps, two steps down': 'unseen_images',
    'warm-up of 500 steps': 'schedules_warm_up',
    'cosine in place of the steps down': 'schedules_cosine',
}
SCHEDULED_CELLS = ('T = 1', 'fitted T')
OF_EVALUATIONS = f'mean mAP of the last {LAST_EPOCHS} epochs'
OF_WEIGHTS = f'mean weights of the last {LAST_EPOCHS} epochs'


def measure(jobs: int) -> None:
    """Evaluate all students that have no row yet."""
    study = read_study(STUDY)
    write_mini_dataset(
        DATA,
        items='fashion-mnist',
        num_images=dict(train=10, calibration=10, val=max(IMAGES)),
        image_size=study.data.mini['image_size'],
    )
    known = {row['hash'] for row in read_rows()}
    students = [run for run in expand([study]) if run.kind == 'student' and run.hash not in known]
    rows = joblib.Parallel(jobs, return_as='generator_unordered')(
        joblib.delayed(_measure)(run) for run in students
    )
    for row in rows:
        with ROWS.open('a', encoding='utf-8') as file:
            file.write(json.dumps(row, sort_keys=True) + '\n')
        print(row['cell'], row['seed'], f'{row["map"][AS_NOW]:.4f}', flush=True)


def _measure(run: Run) -> dict[str, Any]:
    torch.set_num_threads(1)
    cfg = Config.fromfile(run.folder / 'config.py')
    options = {'model.teacher': None, 'model.distillation': None}
    detector = init_detector(cfg, None, device='cpu', cfg_options=options)
    images = _images(cfg)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        metric = UnroundedCocoMetric(str(DATA / 'annotations' / 'val.json'), metric='bbox')
    metric.dataset_meta = images.metainfo
    last = cfg.train_cfg.max_epochs
    paths = [run.folder / f'kept_{last - back}.pth' for back in range(LAST_EPOCHS)]
    states = [load_checkpoint(path)['state_dict'] for path in paths]

    detector.load_state_dict(states[0])
    start = time.process_time()
    results = _detect(detector, images, metric)
    seconds = time.process_time() - start
    found = {f'{count} images': _map(metric, results[:count]) for count in IMAGES}
    few = Subset(images, range(STUDY_IMAGES))
    of_others = []
    for state in (*states[1:], _mean_of(states)):
        detector.load_state_dict(state)
        of_others.append(_map(metric, _detect(detector, few, metric)))
    *of_epochs, found[OF_WEIGHTS] = of_others
    found[OF_EVALUATIONS] = float(np.mean([found[AS_NOW], *of_epochs]))
    return {
        'hash': run.hash,
        'cell': run.name,
        'seed': run.seed,
        'map': found,
        'seconds_per_image': seconds / len(images),
    }


def _images(cfg: Config) -> Dataset:
    return DATASETS.build(
        {
            **cfg.val_dataloader.dataset,
            'data_root': f'{DATA}/',
            'ann_file': 'annotations/val.json',
            'data_prefix': dict(img='val/'),
        }
    )


def _detect(detector: nn.Module, images: Dataset, metric: CocoMetric) -> list[tuple[dict, dict]]:
    """Return the metric's results of all images, in their order."""
    for batch in DataLoader(images, batch_size=BATCH_SIZE, collate_fn=pseudo_collate):
        with torch.no_grad():
            samples = detector.test_step(batch)
        metric.process({}, [sample.to_dict() for sample in samples])
    results, metric.results = metric.results, []
    return results


def _map(metric: CocoMetric, results: list[tuple[dict, dict]]) -> float:
    """Return COCO's mAP on the images of some results."""
    metric.img_ids = [truth['img_id'] for truth, _ in results]
    with contextlib.redirect_stdout(io.StringIO()):
        return metric.compute_metrics(results)['bbox_mAP']


def _mean_of(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        for key, value in states[0].items()
    }


def read_rows() -> list[dict[str, Any]]:
    """Return the rows that were measured."""
    lines = ROWS.read_text('utf-8').splitlines() if ROWS.is_file() else []
    return [json.loads(line) for line in lines]


def compare(rows: Sequence[Mapping[str, Any]], trained: Mapping[str, float]) -> list[list[str]]:
    """Return the table of all ways.

    Args:
        rows: Those of ``spread.jsonl``, of all cells and seeds.
        trained: Seconds that each student takes in its study, by hash: training, evaluation on
            ``STUDY_IMAGES`` images and the figures of its classifier.
    """
    evaluated = float(np.mean([row['seconds_per_image'] for row in rows])) * STUDY_IMAGES
    student = min(trained[row['hash']] for row in rows)  # others ran on a busy machine
    seconds = {
        f'{count} images': student + (count / STUDY_IMAGES - 1) * evaluated for count in IMAGES
    }
    seconds[OF_EVALUATIONS] = student + (LAST_EPOCHS - 1) * evaluated
    seconds[OF_WEIGHTS] = student
    now = _spread(rows, AS_NOW) ** 2 * seconds[AS_NOW]
    lines = [
        ['way', 'spread of a difference', 'time of a student', 'variance × time', 'KD − alone']
    ]
    for way, taken in seconds.items():
        spread = _spread(rows, way)
        lines.append(
            [
                *(way, f'{100 * spread:.2f}', f'{taken / seconds[AS_NOW]:.2f}'),
                *(f'{spread**2 * taken / now:.2f}', f'{100 * _gain(rows, way):+.2f}'),
            ]
        )
    return lines


def _spread(rows: Sequence[Mapping[str, Any]], way: str) -> float:
    """Return the standard deviation of a paired difference, of all cells."""
    return 2**0.5 * _spread_of((row['cell'], row['seed'], row['map'][way]) for row in rows).sd


def _spread_of(values: Iterable[tuple[str, int, float]]) -> Spread:
    """Return the common spread of mAP by cell and seed."""
    cells: dict[str, dict[int, float]] = {}
    for cell, seed, value in values:
        cells.setdefault(cell, {})[seed] = value
    return common_spread(list(cells.values()))


def scheduled() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of two cells by the way that their students were trained."""
    found = {}
    for way, name in SCHEDULES.items():
        study = read_study(ROOT / 'configs' / 'studies' / f'{name}.py')
        found[way] = [
            row
            for row in study_rows(ROOT / study.results)
            if row['study'] == study.name and row['name'] in SCHEDULED_CELLS
        ]
    return found


def compare_schedules(by_way: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Return the table of schedules, from the rows of students by way."""
    lines = [['way', 'spread of a difference', '95 % interval', 'students', 'mAP']]
    for way, rows in by_way.items():
        found = _spread_of((row['name'], row['seed'], row['metrics']['mAP']) for row in rows)
        # Of a standard deviation of normal values.
        ends = (found.degrees / stats.chi2.ppf([0.975, 0.025], found.degrees)) ** 0.5
        spread, low, high = (100 * 2**0.5 * found.sd * factor for factor in (1, *ends))
        mean = 100 * np.mean([row['metrics']['mAP'] for row in rows])
        lines.append(
            [way, f'{spread:.2f}', f'{low:.2f} to {high:.2f}', str(len(rows)), f'{mean:.1f}']
        )
    return lines


def _gain(rows: Sequence[Mapping[str, Any]], way: str) -> float:
    """Return the mean mAP of all distilled students less that of those trained alone."""
    means = [
        np.mean([row['map'][way] for row in rows if (row['cell'] == 'alone') is alone])
        for alone in (False, True)
    ]
    return float(means[0] - means[1])


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--measure', action='store_true', help='evaluate the kept weights')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='students at a time')
    args = parser.parse_args()
    if args.measure:
        measure(args.jobs)
        return
    study = read_study(STUDY)
    trained = {row['hash']: row['seconds'] for row in study_rows(ROOT / study.results)}
    blocks = {
        'spread': table(compare(read_rows(), trained)),
        'schedules': table(compare_schedules(scheduled())),
    }
    PAGE.write_text(fill_blocks(PAGE.read_text('utf-8'), blocks), 'utf-8')
    print('\n\n'.join(blocks.values()))


if __name__ == '__main__':
    main()
