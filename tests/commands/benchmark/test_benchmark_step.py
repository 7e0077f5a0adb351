"""The benchmark of a step: what it times is what it says, and its table says what it measured."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from calkd_cli import main
from calkd_det import config_path
from calkd_det.commands.benchmark import run
from calkd_det.commands.benchmark.subject import (
    Subject,
    as_leaves,
    check_config,
    noise_batch,
    with_random_teacher,
)
from calkd_det.commands.benchmark.tables import step_table
from calkd_det.commands.benchmark.timing import alternate, spread
from calkd_det.commands.benchmark.ways import (
    CALIBRATION,
    DEFAULT,
    STEPS,
    STUDENT,
    TEACHER,
    compare,
    part_steps,
)
from calkd_det.errors import ConfigError
from calkd_det.knowledge import FeatureMaps
from calkd_det.losses import PKDLoss

FASTER_RCNN = config_path('mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py')
RETINANET = config_path('mini/calkd_retinanet_r18-teacher-student_fpn_12e_mini.py')
# A neck as wide as the teacher's, which PKDLoss needs.
WIDTHS = {
    FASTER_RCNN: {
        'model.neck.out_channels': 48,
        'model.rpn_head.in_channels': 48,
        'model.roi_head.bbox_roi_extractor.out_channels': 48,
        'model.roi_head.bbox_head.in_channels': 48,
    },
    RETINANET: {'model.neck.out_channels': 32, 'model.bbox_head.in_channels': 32},
}
CLASS_LOSS = {FASTER_RCNN: dict(type='KDLoss'), RETINANET: dict(type='BinaryKDLoss')}
FEATURES = dict(pkd=dict(type='PKDLoss'), cwd=dict(type='CWDLoss'))

MakeSubject = Callable[..., Subject]


@pytest.fixture(scope='module')
def make_subject(tmp_path_factory: pytest.TempPathFactory) -> MakeSubject:
    """Return a function from a config and its losses to a subject."""
    folder = tmp_path_factory.mktemp('benchmark')

    @functools.cache
    def read(path: str) -> Config:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(WIDTHS[path])
        return with_random_teacher(cfg, folder / f'{Path(path).stem}.pth')

    def make(path: str = FASTER_RCNN, **losses: dict) -> Subject:
        cfg = copy.deepcopy(read(path))
        cfg.model.distillation = losses or dict(cls=CLASS_LOSS[path], **FEATURES)
        return Subject(cfg, (64, 64), 2, torch.device('cpu'))

    return make


def run_parts(subject: Subject) -> dict[str, float | None]:
    return {name: step() for name, step in part_steps(subject, False).items()}


def run_step(name: str, subject: Subject) -> float | None:
    step = STEPS[name](subject, False)
    torch.manual_seed(0)
    return step()


@pytest.mark.parametrize('path', [FASTER_RCNN, RETINANET])
def test_the_losses_of_the_parts_are_that_of_the_step(make_subject: MakeSubject, path: str) -> None:
    subject = make_subject(path)
    parts = run_parts(subject)
    assert list(parts) == [TEACHER, 'loss_kd_cls', 'loss_kd_pkd', 'loss_kd_cwd', CALIBRATION]
    losses = [value for name, value in parts.items() if name.startswith('loss_kd')]
    assert min(losses) > 0
    assert parts[TEACHER] is None
    assert parts[CALIBRATION] is None
    assert sum(losses) == pytest.approx(run_step(DEFAULT, subject), rel=1e-5)


def test_the_student_alone_has_no_loss_of_distillation(make_subject: MakeSubject) -> None:
    assert run_step(STUDENT, make_subject()) is None


def test_a_teacher_in_another_precision(make_subject: MakeSubject) -> None:
    subject = make_subject()
    losses = {name: run_step(name, subject) for name in (DEFAULT, f'{DEFAULT}, bfloat16')}
    assert losses[f'{DEFAULT}, bfloat16'] == pytest.approx(losses[DEFAULT], rel=0.05)
    assert losses[f'{DEFAULT}, bfloat16'] != losses[DEFAULT]


def test_every_round_is_the_same_step(make_subject: MakeSubject) -> None:
    subject = make_subject()
    steps = {DEFAULT: STEPS[DEFAULT](subject, False), **part_steps(subject, False)}
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append([step() for step in steps.values()])
    assert losses[0] == losses[1]


def test_a_loss_that_is_switched_off_is_no_part(make_subject: MakeSubject) -> None:
    subject = make_subject(cls=dict(type='KDLoss'), feat=dict(type='PKDLoss', loss_weight=0.0))
    assert list(part_steps(subject, False)) == [TEACHER, 'loss_kd_cls', CALIBRATION]


@pytest.mark.parametrize(
    ('losses', 'ran', 'left_out'),
    [
        (dict(cls=dict(type='KDLoss')), {'SingleRoIExtractor'}, set()),
        (dict(feat=dict(type='PKDLoss')), set(), {'SingleRoIExtractor', 'Shared2FCBBoxHead'}),
    ],
)
def test_the_bare_teacher_runs_only_what_the_losses_need(
    make_subject: MakeSubject, losses: dict, ran: set[str], left_out: set[str]
) -> None:
    step = part_steps(make_subject(**losses), False)[TEACHER]
    modules: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: modules.append(type(module).__name__)
    )
    try:
        step()
    finally:
        handle.remove()
    assert {'ResNet', 'FPN', *ran} <= set(modules)
    assert not {'RPNHead', 'BatchNorm2d', 'CrossEntropyLoss', *left_out} & set(modules)


def test_a_loss_computes_a_fresh_gradient_each_time() -> None:
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    gradients: list[torch.Tensor] = []
    maps.register_hook(gradients.append)
    piece = FeatureMaps((maps,), (32, 32), [torch.zeros(0, 4)] * 2)
    teacher = torch.randn(2, 3, 4, 4)
    for _ in range(2):
        value = compare(PKDLoss(2.0, 1), [(piece, (teacher,))], nullcontext())
    assert value == pytest.approx(PKDLoss(2.0, 1)([maps], [teacher]).item())
    assert len(gradients) == 2
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)
    assert maps.grad is None


def test_leaves_begin_a_new_graph() -> None:
    weight = torch.ones(2, 3, 4, 4, requires_grad=True)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    boxes = [torch.zeros(1, 4)]
    piece = FeatureMaps((2 * weight, 3 * weight), (32, 32), boxes, (mask, mask))
    leaves = as_leaves(piece)
    assert all(maps.is_leaf and maps.requires_grad for maps in leaves.maps)
    assert torch.equal(leaves.maps[1], piece.maps[1])
    assert leaves.maps[1] is not piece.maps[1]
    assert leaves.valid[0] is mask
    assert leaves.boxes[0] is boxes[0]
    assert leaves.batch_size == (32, 32)


def test_noise_boxes_lie_in_the_image() -> None:
    batch = noise_batch((64, 96), 3)
    for image, data_sample in zip(batch['inputs'], batch['data_samples']):
        assert image.shape == (3, 64, 96)
        boxes = data_sample.gt_instances.bboxes
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= 96
        assert boxes[:, 3].max() <= 64
        assert (data_sample.gt_instances.labels == 0).all()


def test_steps_take_turns() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in 'abc'}
    seconds, _ = alternate(steps, rounds=3, warm_up=1, device=torch.device('cpu'))
    assert ''.join(calls[3:]) == 'abcbcacab'
    assert {name: len(values) for name, values in seconds.items()} == dict(a=3, b=3, c=3)


def test_spread() -> None:
    assert spread([2.0]) == (2, 2, 2)
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (2, 3, 4)


def measured() -> dict:
    return dict(
        pair='a-b',
        seconds={
            STUDENT: [3.0],
            DEFAULT: [4.2],
            'CalKD, bfloat16': [4.0],
            TEACHER: [1.0],
            'loss_kd_feat': [0.02],
            CALIBRATION: [0.0021],
        },
        losses={STUDENT: None, DEFAULT: 2.0, 'CalKD, bfloat16': 2.00002, 'loss_kd_feat': 2.0},
        teacher_bytes=2**29,
        peak_bytes={STUDENT: 2**30, DEFAULT: 2**30 + 2**29 + 2**27},
    )


def test_the_tables_figures() -> None:
    assert step_table([measured()]).splitlines()[2:] == [
        '| a-b | student alone | 0.750 | 0.750, 0.750 | 0.714 |  | 1.00 GiB |  |',
        '| a-b | CalKD | 1.050 | 1.050, 1.050 | 1.000 |  | 1.62 GiB | +8.3 % |',
        '| a-b | CalKD, bfloat16 | 1.000 | 1.000, 1.000 | 0.952 | 1e-05 |  |  |',
        '| a-b | teacher alone | 0.250 | 0.250, 0.250 | 0.238 |  |  |  |',
        '| a-b | loss_kd_feat | 0.0050 | 0.0050, 0.0050 | 0.0048 |  |  |  |',
        '| a-b | calibration and diagnostics | 0.0005 | 0.0005, 0.0005 | 0.0005 |  |  |  |',
    ]


def test_times_are_compared_within_a_round() -> None:
    result = measured()
    # A machine that slows down: the step costs 1.1 times the limit in each round.
    result['seconds'] = {STUDENT: [3.0, 6.0, 30], DEFAULT: [4.4, 8.8, 44], TEACHER: [1.0, 2.0, 10]}
    rows = step_table([result]).splitlines()[2:]
    assert rows[1].startswith('| a-b | CalKD | 1.100 | 1.100, 1.100 | 1.000 |')


def test_the_command_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, '_measure_memory', lambda subject, name, settings: 2**30)
    page = tmp_path / 'page.md'
    page.write_text('<!-- begin step --><!-- end step -->')
    words = ['--image-size', '64', '64', '--rounds', '1', '--warm-up', '0', '--threads', '1']
    words += ['--images', '2', '--page', str(page), '--cfg-options']
    words += [f'{key}={value}' for key, value in WIDTHS[FASTER_RCNN].items()]
    # Several losses in place of the config's one.
    words += ['model.distillation._delete_=True', 'model.distillation.cls.type=KDLoss']
    words += ['model.distillation.feat.type=PKDLoss', 'model.distillation.feat.loss_weight=3']
    assert main(['benchmark', FASTER_RCNN, *words]) == 0
    written = json.loads((tmp_path / 'page' / 'step.json').read_text('utf-8'))
    (result,) = written['results']
    assert result['pair'] == 'faster-rcnn r18-teacher-student'
    steps = [STUDENT, DEFAULT]
    assert list(result['peak_bytes']) == steps
    parts = [TEACHER, 'loss_kd_cls', 'loss_kd_feat', CALIBRATION]
    assert list(result['seconds']) == [*steps, *parts]
    assert result['teacher_bytes'] > 2**20
    assert '--image-size 64 64' in written['about']['command']
    table = step_table([result])
    assert table in (tmp_path / 'page' / 'step.md').read_text('utf-8')
    assert table in page.read_text('utf-8')
    captured = capsys.readouterr()
    assert table in captured.out
    assert '2 images of 64 × 64' in captured.out
    assert 'faster-rcnn r18-teacher-student [1/1]: 100%' in captured.err


def test_what_was_measured_before_an_interruption_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def measure(subject: Subject, settings: run.Settings, title: str) -> dict:
        titles.append(title)
        if len(titles) == 2:
            raise KeyboardInterrupt
        return measured()

    monkeypatch.setattr(run, '_measure', measure)
    argv = ['benchmark', FASTER_RCNN, RETINANET, '--threads', '1', '--out', str(tmp_path)]
    assert main(argv) != 0
    pair = 'r18-teacher-student'
    assert titles == [f'faster-rcnn {pair} [1/2]', f'retinanet {pair} [2/2]']
    written = json.loads((tmp_path / 'step.json').read_text('utf-8'))
    assert [result['seconds'] for result in written['results']] == [measured()['seconds']]


@pytest.mark.slow
def test_peak_memory_of_a_process(make_subject: MakeSubject) -> None:
    settings = run.Settings('', torch.device('cpu'), (64, 64), 2, 1, 0, 1, False, None, True)
    peak = run._measure_memory(make_subject(), DEFAULT, settings)
    assert 2**26 < peak < 2**34


def test_names_for_the_tables() -> None:
    assert run.pair_name('calkd_faster-rcnn_r101-r50_fpn_8xb1') == 'faster-rcnn r101-r50'
    assert run.pair_name('mine') == 'mine'


def test_a_page_without_the_block_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / 'page.md'
    page.write_text('no block')
    assert main(['benchmark', FASTER_RCNN, '--page', str(page)]) == 1
    assert 'the page must have one <!-- begin step -->' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['page.md']


def test_a_config_without_an_optimizer_is_refused() -> None:
    cfg = Config.fromfile(FASTER_RCNN)
    cfg.pop('optim_wrapper')
    with pytest.raises(ConfigError, match='has no optim_wrapper'):
        check_config(cfg)
