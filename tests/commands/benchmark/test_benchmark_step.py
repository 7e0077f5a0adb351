"""The benchmark of a step: what it times is what it says, and its tables say what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from calkd_cli import main
from calkd_det import config_path
from calkd_det.commands.benchmark import run
from calkd_det.commands.benchmark.growth import growth_points
from calkd_det.commands.benchmark.subject import (
    Subject,
    check_config,
    noise_batch,
    write_random_teacher,
)
from calkd_det.commands.benchmark.tables import growth_plot, growth_table, limit_of, step_table
from calkd_det.commands.benchmark.timing import alternate, spread
from calkd_det.commands.benchmark.ways import DEFAULT, KD_PART, STUDENT, TEACHER, WAYS
from calkd_det.errors import ConfigError

CONFIG = config_path('mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py')
COMPILED = 'CalKD, compiled'


@pytest.fixture(scope='module')
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    cfg = Config.fromfile(CONFIG)
    path = tmp_path_factory.mktemp('benchmark') / 'teacher.pth'
    write_random_teacher(cfg, path)
    return Subject(cfg, path, (64, 64), 2, torch.device('cpu'))


def seeded(name: str, subject: Subject) -> float | None:
    step = WAYS[name](subject, False)
    torch.manual_seed(0)
    return step()


@pytest.mark.parametrize('name', [name for name in WAYS if name != COMPILED])
def test_every_way_runs_and_tells_its_loss(subject: Subject, name: str) -> None:
    loss = seeded(name, subject)
    if name in (STUDENT, TEACHER):
        assert loss is None
    else:
        assert loss > 0


def test_the_part_that_is_neither_network_gives_the_loss_of_the_step(subject: Subject) -> None:
    assert seeded(KD_PART, subject) == pytest.approx(seeded(DEFAULT, subject), rel=1e-5)


def test_the_second_forward_compares_the_same_rois(subject: Subject) -> None:
    losses = []
    for name in ('second forward', DEFAULT):
        losses.append(seeded(name, subject))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # its BatchNorm is not folded


def test_every_round_is_the_same_step(subject: Subject) -> None:
    step = WAYS[DEFAULT](subject, False)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(step())
    assert losses[0] == losses[1]


def test_the_teachers_part_runs_no_more_than_the_step_does(subject: Subject) -> None:
    ran: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: ran.append(type(module).__name__)
    )
    try:
        step = WAYS[TEACHER](subject, False)
        ran.clear()
        step()
    finally:
        handle.remove()
    assert 'SingleRoIExtractor' in ran
    assert not {'RPNHead', 'BatchNorm2d', 'CrossEntropyLoss'} & set(ran)


def test_noise_boxes_lie_in_the_image() -> None:
    batch = noise_batch((64, 96), 3, 5)
    for image, data_sample in zip(batch['inputs'], batch['data_samples']):
        assert image.shape == (3, 64, 96)
        boxes = data_sample.gt_instances.bboxes
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= 96
        assert boxes[:, 3].max() <= 64
        assert data_sample.gt_instances.labels.max() < 5


def test_steps_take_turns() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in 'abc'}
    seconds, _ = alternate(steps, rounds=3, warm_up=1, device=torch.device('cpu'))
    assert ''.join(calls[3:]) == 'abcbcacab'
    assert {name: len(values) for name, values in seconds.items()} == dict(a=3, b=3, c=3)


def test_spread() -> None:
    assert spread([2.0]) == (2, 2, 2)
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (2, 3, 4)


def result(**seconds: float) -> dict:
    names = dict(student=STUDENT, teacher=TEACHER, calkd=DEFAULT, kd=KD_PART)
    return dict(
        pair='a-b',
        seconds={names[key]: [value] for key, value in seconds.items()},
        losses={DEFAULT: 2.0},
    )


def test_the_tables_figures() -> None:
    measured = result(student=3.0, teacher=1.0, calkd=4.2, kd=0.02)
    measured['seconds']['whole loss mode'] = [6.3]
    measured['seconds']['CalKD, bfloat16'] = [4.0]
    measured['losses']['CalKD, bfloat16'] = 2.00002
    measured['teacher_bytes'] = 2**29
    measured['peak_bytes'] = {STUDENT: 2**30, DEFAULT: 2**30 + 2**29 + 2**27}
    assert limit_of(measured) == 4.0
    table = step_table([measured])
    assert '| a-b | CalKD | 1.050 | 1.050, 1.050 | 1.00 |  | 1.62 GiB | +8.3 % |' in table
    assert '| whole loss mode | 1.575 | 1.575, 1.575 | 1.50 |' in table
    assert '| CalKD, bfloat16 | 1.000 | 1.000, 1.000 | 0.95 | 1e-05 |' in table
    assert '| KD part | 0.0050 |' in table


def test_growth_is_against_the_first_of_its_axis() -> None:
    small = dict(
        result(student=3.0, teacher=1.0, calkd=4.0, kd=0.01), axis='x', value='1', logits=8
    )
    large = dict(
        result(student=6.0, teacher=2.0, calkd=8.8, kd=0.02), axis='x', value='2', logits=32
    )
    last = growth_table([small, large]).splitlines()[-1]
    assert last == ('| x | 2 | 32 | 1.500 | 0.500 | 0.0050 | 1.100 | 0.23 % | 2.00 × | 4.00 × |')


def test_what_grows(subject: Subject, tmp_path: Path) -> None:
    teacher = config_path('mini/faster-rcnn_r18-teacher_fpn_12e_mini.py')
    points = list(growth_points(subject, [teacher], tmp_path))
    axes = dict.fromkeys(axis for axis, _, _ in points)
    assert list(axes) == ['image side', 'RoIs an image', 'classes', 'images', 'teacher']
    models = {(axis, value): varied.cfg.model for axis, value, varied in points}
    assert models['RoIs an image', '256'].train_cfg.rcnn.sampler.num == 256
    assert models['classes', '1203'].roi_head.bbox_head.num_classes == 1203
    assert subject.cfg.model.roi_head.bbox_head.num_classes == 10
    assert {varied.size for axis, _, varied in points if axis == 'image side'} >= {(128, 128)}


@pytest.mark.slow
def test_the_tool_writes_both_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = ['classes', 'images']
    monkeypatch.setattr(
        run, 'growth_points', lambda *args: (p for p in growth_points(*args) if p[0] in axes)
    )
    common = [
        *(CONFIG, '--image-size', '64', '64', '--rounds', '1', '--warm-up', '0'),
        *('--threads', '1', '--out', str(tmp_path)),
    ]
    assert main(['benchmark', *common, '--ways', 'CalKD, bfloat16', '--images', '2']) == 0
    written = json.loads((tmp_path / 'step.json').read_text('utf-8'))
    (measured,) = written['results']
    assert measured['pair'] == 'r18-teacher-student'
    assert set(measured['peak_bytes']) == {STUDENT, DEFAULT, 'CalKD, bfloat16'}
    assert all(value > 2**26 for value in measured['peak_bytes'].values())
    assert step_table([measured]) in (tmp_path / 'step.md').read_text('utf-8')
    assert '--image-size 64 64' in written['about']['command']

    teacher = config_path('mini/faster-rcnn_r18-teacher_fpn_12e_mini.py')
    assert main(['benchmark', *common, '--images', '2', '--growth', '--teachers', teacher]) == 0
    points = json.loads((tmp_path / 'growth.json').read_text('utf-8'))['results']
    by_axis = {}
    for point in points:
        by_axis.setdefault(point['axis'], []).append(point)
    assert list(by_axis) == axes
    classes = {point['value']: point['logits'] for point in by_axis['classes']}
    assert classes['1203'] / classes['80'] == pytest.approx(1204 / 81)
    assert (tmp_path / 'growth.png').stat().st_size > 10_000
    assert 'images of 64 × 64' in capsys.readouterr().out


def test_names_for_the_tables() -> None:
    assert run.pair_name('calkd_faster-rcnn_r101-r50_fpn_8xb1') == 'r101-r50'
    assert run.pair_name('mine') == 'mine'


def test_teachers_of_any_name_are_drawn(tmp_path: Path) -> None:
    points = [
        dict(result(student=3.0, teacher=1.0, calkd=4.0, kd=0.01), axis='teacher', value=name)
        for name in ('mine', 'faster-rcnn_r50_fpn_1x_coco')
    ]
    growth_plot(points, tmp_path / 'growth.png')
    assert (tmp_path / 'growth.png').stat().st_size > 5_000


def test_a_page_without_the_block_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / 'page.md'
    page.write_text('no block')
    assert main(['benchmark', CONFIG, '--page', str(page)]) == 1
    assert 'the page must have one <!-- begin step -->' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['page.md']


def test_a_config_without_an_optimizer_is_refused() -> None:
    cfg = Config.fromfile(CONFIG)
    cfg.pop('optim_wrapper')
    with pytest.raises(ConfigError, match='has no optim_wrapper'):
        check_config(cfg)
