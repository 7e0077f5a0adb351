"""What the demo draws, on files that the tests make up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.structures import InstanceData

from calkd_det.commands.study.demo.curves import plot_curves
from calkd_det.commands.study.demo.demo import demo_study
from calkd_det.commands.study.demo.files import read_scalars, same_boxes
from calkd_det.commands.study.demo.grid import above_threshold, choose_images, match
from calkd_det.commands.study.runs import expand
from calkd_det.errors import ConfigError

NUM_IMAGES = {'train': 640, 'calibration': 200, 'val': 300}


def boxes(bboxes: np.ndarray, labels: np.ndarray, **others: np.ndarray) -> InstanceData:
    return InstanceData(bboxes=bboxes, labels=labels, **others)


def write_log(folder: Path, start: str, steps: dict[int, float], distilled: bool) -> None:
    lines = []
    for step, loss in steps.items():
        entry = {'lr': 0.02, 'loss': loss, 'loss_cls': loss / 2, 'time': 0.1, 'step': step}
        if distilled:
            entry |= {'loss_kd': 0.25, 'teacher_confidence': 0.75}
            entry |= {'teacher_accuracy': 0.5, 'teacher_agreement': 0.625}
        lines.append(entry)
    lines.append({'coco/bbox_mAP': 0.1, 'step': 2})  # of a validation
    path = folder / start / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_a_resumed_log_counts_from_its_last_start(tmp_path: Path) -> None:
    write_log(tmp_path, '20260101_000000', {20: 3.0, 40: 2.5, 60: 2.4}, False)
    write_log(tmp_path, '20260101_010000', {40: 2.2, 60: 2.0}, False)
    assert {step: entry['loss'] for step, entry in read_scalars(tmp_path).items()} == {
        20: 3.0,
        40: 2.2,
        60: 2.0,
    }


def test_an_empty_or_damaged_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='no training log'):
        read_scalars(tmp_path)
    write_log(tmp_path, 'a', {20: 1.0}, False)
    (tmp_path / 'a' / 'vis_data' / 'scalars.json').write_text('{"loss": 1')
    with pytest.raises(ConfigError, match=r'scalars\.json is damaged'):
        read_scalars(tmp_path)


def test_the_curves_leave_the_teachers_loss_out(tmp_path: Path) -> None:
    titles = ('student alone', 'KD', 'CalKD')
    for title in titles:
        write_log(tmp_path / title, '1', {20: 2.0, 40: 1.5}, title != 'student alone')
    own, classification, distillation, diagnostics = plot_curves(
        {title: read_scalars(tmp_path / title) for title in titles}
    ).axes
    assert [list(line.get_ydata()) for line in own.lines] == [[2.0, 1.5]] + [[1.75, 1.25]] * 2
    assert [line.get_label() for line in classification.lines] == list(titles)
    assert [list(line.get_ydata()) for line in distillation.lines] == [[0.25, 0.25]] * 2
    assert [line.get_ydata()[0] for line in diagnostics.lines] == [0.75, 0.5, 0.625]
    assert diagnostics.get_title() == "the teacher on the RoIs of 'CalKD'"


def test_images_are_chosen_by_their_ids_alone() -> None:
    assert choose_images([7, 1, 3, 5, 9, 11, 13, 15, 17, 19]) == [1, 5, 9, 13, 17]
    assert choose_images([2, 1]) == [1, 2]


def test_each_object_is_found_once_and_by_its_class() -> None:
    truth = boxes(np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]]), np.array([1, 2]))
    detections = boxes(
        np.array(
            [[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [26, 0, 36, 10], [20, 0, 30, 9]]
        ),
        np.array([1, 1, 1, 2, 2]),
        scores=np.array([0.7, 0.9, 0.8, 0.6, 0.3]),
    )
    shown = above_threshold(detections)
    assert shown.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.3]
    right, missed = match(shown, truth)
    assert right.tolist() == [True, False, False, False, True]
    assert missed.tolist() == [False, False]
    right, missed = match(shown[:1], truth)
    assert right.tolist() == [True]
    assert missed.tolist() == [False, True]
    none = boxes(np.zeros((0, 4)), np.zeros(0, int))
    assert match(shown, none)[0].tolist() == [False] * 5
    detections.scores = np.zeros(5)
    right, missed = match(above_threshold(detections), truth)
    assert right.size == 0
    assert missed.tolist() == [True, True]


def test_a_difference_in_one_score_is_seen() -> None:
    values = dict(bboxes=np.array([[0.0, 0, 10, 10]]), labels=np.array([1]), scores=np.array([0.5]))
    one = boxes(**values)
    assert same_boxes([one], [boxes(**values)])
    for changes in (
        dict(scores=np.array([0.51])),
        dict(labels=np.array([2])),
        dict(bboxes=one.bboxes + 1),
    ):
        assert not same_boxes([one], [boxes(**{**values, **changes})])


def test_the_default_demo_trains_as_the_mini_configs_say() -> None:
    study = demo_study(Path('work_dirs/demo'), Path('data/mini'), 12, NUM_IMAGES)
    options = study.student.cfg_options
    assert not any(key.startswith(('train_cfg', 'param_scheduler')) for key in options)
    runs = expand([study])
    assert [(run.kind, run.name) for run in runs] == [
        ('teacher', 'teacher'),
        *(('student', name) for name in ('student alone', 'KD', 'CalKD', 'CalKD and features')),
    ]


def test_a_short_demo_shortens_schedule_and_warm_up() -> None:
    study = demo_study(Path('w'), Path('d'), 3, {**NUM_IMAGES, 'train': 64})
    assert study.student.cfg_options == study.teachers['teacher'].cfg_options
    assert (
        study.student.cfg_options.items()
        >= {
            'train_cfg.max_epochs': 3,
            'param_scheduler.1.milestones': [2, 3],
            'param_scheduler.0.end': 6,
            'val_dataloader.dataset.data_root': 'd/',
            'val_evaluator.ann_file': 'd/annotations/val.json',
        }.items()
    )


def test_what_changes_the_demo_is_another_run() -> None:
    def hashes(epochs: int = 2, data: str = 'd', **counts: int) -> set[str]:
        study = demo_study(Path('w'), Path(data), epochs, {**NUM_IMAGES, **counts})
        return {run.hash for run in expand([study])}

    before = hashes()
    assert len(before) == 5
    assert hashes() == before
    for other in (hashes(epochs=3), hashes(train=80)):
        assert not other & before
