"""The walk over mmdet's configs, on a few of them."""

from __future__ import annotations

from pathlib import Path

import helpers
import mmdet
import pytest
from mmdet.models.detectors import RetinaNet
from mmengine.config import ConfigDict
from mmengine.hub import get_config

from calkd_cli import main
from calkd_det.commands.zoo import walk
from calkd_det.commands.zoo.configs import ZooConfig, describe_error, iterate_configs
from calkd_det.commands.zoo.page import format_page, step_key, summarise
from calkd_det.commands.zoo.self_taught import teach_itself
from calkd_det.commands.zoo.student import (
    Student,
    build_without_weights,
    examine_config,
    reason_against_kind,
)
from calkd_det.errors import ConfigError
from calkd_det.losses import BinaryKDLoss, PKDLoss
from calkd_det.taps import DenseHeadTap, probe_maps


def examine(name: str) -> Student:
    (config,) = iterate_configs(name)
    return examine_config(config)


@pytest.mark.parametrize(
    ('name', 'head', 'refused'),
    [
        ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'StandardRoIHead', {}),
        ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 'StandardRoIHead', {}),
        ('ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py', 'MaskScoringRoIHead', {}),
        ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 'StandardRoIHead', {}),
        ('grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py', 'GridRoIHead', {}),
        ('point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', 'PointRendRoIHead', {}),
        ('scnet/scnet_r50_fpn_1x_coco.py', 'SCNetRoIHead', {}),
        ('foveabox/fovea_r50_fpn_4xb4-1x_coco.py', 'FoveaHead', {}),
        ('ddod/ddod_r50_fpn_1x_coco.py', 'DDODHead', {}),
        ('nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py', 'NASFCOSHead', {}),
        ('nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco.py', 'FCOSHead', {}),
        ('condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', 'CondInstBboxHead', {}),
        ('rpn/rpn_r50_fpn_1x_coco.py', 'RPNHead', {'class': 'tells objects'}),
        ('guided_anchoring/ga-rpn_r50_fpn_1x_coco.py', 'GARPNHead', {'class': 'tells objects'}),
        ('centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py', 'CenterNetUpdateHead',
         {'class': 'heat maps'}),
        ('solo/solo_r50_fpn_1x_coco.py', 'SOLOHead as its mask_head', {'class': 'cells of grids'}),
        ('dino/dino-4scale_r50_8xb2-12e_coco.py', 'DINOHead', {}),
        ('cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py', 'CornerHead',
         {'class': 'heat maps'}),
        ('tridentnet/tridentnet_r50-caffe_1x_coco.py', 'TridentRoIHead',
         {'class': 'branch', 'features': 'several branches'}),
    ],
)  # fmt: skip
def test_what_a_student_learns(name: str, head: str, refused: dict[str, str]) -> None:
    student = examine(name)
    assert (student.head, student.unreadable, student.fault) == (head, '', '')
    assert student.num_parameters > 10**6
    for kind in ('class', 'features'):
        assert student.learns(kind) == (kind not in refused)
        assert refused.get(kind, '') in student.refused.get(kind, '')


def test_students_of_large_backbones_take_no_memory() -> None:
    model = get_config('mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py').model
    detector = build_without_weights(model)
    weights = [p for p in detector.parameters() if p.numel() > 10**6]
    assert sum(p.numel() for p in weights) > 10**8
    assert all(p.is_meta for p in weights)


def test_a_class_that_cannot_be_distilled_is_listed_with_its_reason() -> None:
    student = examine('soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py')
    assert 'SoftTeacher has a teacher of its own' in student.refused_class
    assert not student.learns('features')
    student = examine('qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py')
    assert 'QDTrack is a tracker that does not call' in student.refused_class


def test_a_model_that_mmdet_cannot_build_is_no_fault_of_the_walk() -> None:
    model = helpers.detector_config()
    model.neck.type = 'NoSuchNeck'
    student = examine_config(ZooConfig('family/name.py', model))
    assert student.unreadable.startswith('KeyError: ')
    assert student.fault == ''
    unread = examine_config(ZooConfig('family/name.py', None, 'ImportError: no package'))
    assert unread.unreadable == 'ImportError: no package'


def small_retinanet() -> ConfigDict:
    model = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    model.backbone.update(base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3)
    return model


def test_an_error_without_a_reason_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_retinanet()
    monkeypatch.setattr('calkd_det.commands.zoo.student.find_taps', lambda *args: 1 / 0)
    student = examine_config(ZooConfig('retinanet/name.py', model))
    assert student.fault == 'ZeroDivisionError: division by zero'
    assert '1 end in an error that gives no reason' in summarise([student])
    assert '## Errors without a reason' in format_page([student], {}, 'calkd zoo')


def test_reasons_name_no_folder_of_the_machine() -> None:
    folder = Path(mmdet.__file__).parent
    error = FileNotFoundError(f"no file '{folder}/configs/NAME.py'\nand more")
    assert describe_error(error) == "FileNotFoundError: no file 'mmdet/configs/NAME.py'"
    compiled = RuntimeError('failed at "/build/mmcv-2.1.0/mmcv/ops/roi_align.cpp":138')
    assert describe_error(compiled) == 'RuntimeError: failed at "mmcv/ops/roi_align.cpp":138'


def test_boxes_that_are_not_read_have_a_reason_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = build_without_weights(small_retinanet())
    assert reason_against_kind(student, 'class') == ''
    monkeypatch.setattr(DenseHeadTap, 'kinds', lambda self, detector: frozenset({'class'}))
    assert reason_against_kind(student, 'box') == 'its classes are read, but not its boxes'
    student.bbox_head.use_sigmoid_cls = False
    assert 'use_sigmoid=True' in reason_against_kind(student, 'box')


def test_the_feature_maps_of_an_ssd_can_be_compared() -> None:
    model = get_config('mmdet::ssd/ssd300_coco.py').model
    model.backbone.init_cfg = None
    maps = probe_maps(helpers.build(model), 3, 'model')
    assert [channels for channels, _, _ in maps] == [512, 1024, 512, 256, 256, 256]


def test_a_small_detector_is_taught_by_itself() -> None:
    assert teach_itself(small_retinanet(), ['class', 'features']) == 'yes'


def fail(*args: object, **kwargs: object) -> None:
    raise RuntimeError('on purpose')


def test_a_step_tells_whose_fault_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetinaNet, 'loss', fail)
    assert teach_itself(small_retinanet(), ['class']) == 'not tried: RuntimeError: on purpose'
    monkeypatch.undo()
    monkeypatch.setattr(BinaryKDLoss, 'forward', fail)
    assert teach_itself(small_retinanet(), ['class']) == 'no: RuntimeError: on purpose'


def test_a_loss_between_equal_networks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PKDLoss, 'compute', lambda self, student, *args: student[0].sum() * 0 + 2)
    assert teach_itself(small_retinanet(), ['features']) == 'no: loss_kd_features is 12'


def test_the_page_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(walk, 'teach_itself', lambda model, kinds: f'by {" and ".join(kinds)}')
    page = tmp_path / 'zoo.md'
    only = 'r*/r*_r50-caffe_fpn_1x_coco.py'
    assert main(['zoo', '--only', only, '--out', str(page)]) == 0
    text = page.read_text('utf-8')
    assert f"`calkd zoo --only '{only}' --out {page}` writes this page" in text
    row = next(line for line in text.splitlines() if 'CalKDRetinaNet' in line)
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[:3] == ['retinanet', '`CalKDRetinaNet`', 'RetinaHead']
    assert cells[4:7] == ['yes', 'yes', 'yes']
    assert f'\n{cells[7]}. by class and box and features\n' in text
    row = next(line for line in text.splitlines() if 'CalKDRPN' in line)
    number = row.strip('|').split('|')[4].strip()
    assert f'\n{number}. it tells objects from background' in text
    assert f'{page}: Of ' in capsys.readouterr().out

    monkeypatch.setattr(walk, 'teach_itself', lambda model, kinds: 'no: a gradient is not finite')
    assert main(['zoo', '--only', 'rpn/rpn_r50_fpn_1x_coco.py']) == 1
    assert '. no: a gradient is not finite' in capsys.readouterr().out


def test_the_smallest_model_of_each_kind_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    taught = []
    monkeypatch.setattr(walk, 'teach_itself', lambda model, kinds: taught.append(model) or 'yes')
    students = walk.examine_zoo('retinanet/retinanet_r[15]*_fpn_1x_coco.py', lambda text: None)
    assert len({student.num_parameters for student in students}) > 2
    steps = walk.run_steps(students, lambda text: None)
    assert list(steps) == [step_key(students[0])]
    (model,) = taught
    assert model.backbone.depth == 18


def test_a_pattern_without_configs_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"no config of mmdet in .* matches 'no/such'"):
        list(iterate_configs('no/such'))
    assert main(['zoo', '--only', 'no/such']) == 1
    assert 'write FAMILY/NAME.py' in capsys.readouterr().err
