"""The taps of dense heads beside what every detector promises: order, branches, who is asked."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dense_cases
import helpers
import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import RTMDetInsHead
from mmdet.models.dense_heads.condinst_head import CondInstBboxHead
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det.calibration.scores import negative_log_likelihood
from calkd_det.errors import ConfigError
from calkd_det.taps import Geometry, HeadSamples, find_tap
from calkd_det.taps.refused import REFUSED
from calkd_det.teachers.folding import fold_batchnorm

FAMILIES = list(dense_cases.ZOO)
REFUSED_CONFIGS = {
    'FreeAnchorRetinaHead': 'free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'FSAFHead': 'fsaf/fsaf_r50_fpn_1x_coco.py',
    'PAAHead': 'paa/paa_r50_fpn_1x_coco.py',
    'SSDHead': 'ssd/ssd300_coco.py',
    'TOODHead': 'tood/tood_r50_fpn_1x_coco.py',
    'VFNetHead': 'vfnet/vfnet_r50_fpn_1x_coco.py',
    'YOLOFHead': 'yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'YOLOV3Head': 'yolo/yolov3_d53_8xb8-320-273e_coco.py',
}


def build(name: str, **head: Any) -> nn.Module:
    """A detector with logits that differ, and BatchNorm that folding has to get right."""
    detector = helpers.build(dense_cases.detector_config(name, **head))
    generator = torch.Generator().manual_seed(1)
    for layer in dense_cases.classifiers(detector):
        layer.weight.data = 0.3 * torch.randn(layer.weight.shape, generator=generator)
        layer.bias.data = torch.randn(layer.bias.shape, generator=generator)
    helpers.randomise_batchnorm(detector)
    return detector


def is_instance_head(detector: nn.Module) -> bool:
    return isinstance(detector.bbox_head, (RTMDetInsHead, CondInstBboxHead))


def batch(detector: nn.Module, masks: bool | None = None) -> dict[str, list]:
    """A batch, with masks where the detector's loss needs them and nothing else is said."""
    return helpers.batch(masks=is_instance_head(detector) if masks is None else masks)


def record(
    detector: nn.Module, data: dict[str, list] | None = None
) -> tuple[HeadSamples, list[Tensor]]:
    """What the tap records of a step, and the maps that the head returned in it."""
    maps: list[Tensor] = []
    handle = detector.bbox_head.register_forward_hook(lambda m, a, out: maps.extend(out[0]))
    with find_tap(detector, 'model').record(detector) as samples:
        helpers.loss(detector, data or batch(detector))
    handle.remove()
    (only,) = samples
    return only, maps


def row_of(
    maps: list[Tensor], anchors: int, at: tuple[int, int, int, int, int]
) -> tuple[int, Tensor]:
    """The row of a level, image, row, column and anchor, and the logits that belong there."""
    level, image, y, x, anchor = at
    batch = len(maps[0])
    sizes = [m.shape[2] * m.shape[3] * anchors for m in maps]
    cell = (y * maps[level].shape[3] + x) * anchors + anchor
    row = batch * sum(sizes[:level]) + image * sizes[level] + cell
    return row, maps[level][image, :, y, x].view(anchors, -1)[anchor]


# What is recorded


@pytest.mark.parametrize('name', FAMILIES)
def test_rows_are_where_the_locations_say(name: str) -> None:
    detector = build(name).train()
    samples, maps = record(detector)
    anchors = maps[0].shape[1] // dense_cases.NUM_CLASSES
    assert samples.locations.tolist() == [list(m.shape[-2:]) for m in maps]
    assert samples.activation == 'sigmoid'
    for at in ((0, 0, 0, 0, 0), (0, 1, 3, 2, anchors - 1), (1, 1, 2, 4, 0), (2, 1, 1, 0, 0)):
        row, expected = row_of(maps, anchors, at)
        assert torch.equal(samples.logits[row], expected), at
    assert samples.logits.requires_grad
    assert len(samples) == sum(m.numel() for m in maps) // dense_cases.NUM_CLASSES


@pytest.mark.parametrize('name', FAMILIES)
def test_the_object_is_labelled_where_it_is(name: str) -> None:
    detector = build(name).train()
    data = helpers.batch(((96, 96), (96, 96)), num_boxes=1)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([[56.0, 40.0, 88.0, 72.0]])
    for sample, box, label in zip(data['data_samples'], boxes, (2, 0)):
        x1, y1, x2, y2 = box[0].int().tolist()
        masks = np.zeros((1, 96, 96), np.uint8)
        masks[:, y1:y2, x1:x2] = 1
        sample.gt_instances = InstanceData(bboxes=box, labels=torch.tensor([label]))
        if is_instance_head(detector):
            sample.gt_instances.masks = BitmapMasks(masks, 96, 96)
    samples, maps = record(detector, data)
    anchors = maps[0].shape[1] // dense_cases.NUM_CLASSES
    assert ((samples.labels >= 0) & (samples.labels <= dense_cases.NUM_CLASSES)).all()
    for image, label in enumerate((2, 0)):
        middle = (boxes[image][0, :2] + boxes[image][0, 2:]) / 2
        found = 0
        for level, x in enumerate(maps):
            stride = 8 * 2**level
            for at in itertools.product(*map(range, (*x.shape[2:], anchors))):
                row, _ = row_of(maps, anchors, (level, image, *at))
                if samples.labels[row] != dense_cases.NUM_CLASSES:
                    found += 1
                    assert samples.labels[row] == label
                    place = stride * (torch.tensor([at[1], at[0]]) + 0.5)
                    assert (place - middle).abs().max() < max(16 + stride, 3 * stride)
        assert found


def test_what_retinanet_ignores_has_no_weight() -> None:
    samples, _ = record(build('RetinaNet').train())
    ignored = samples.weights == 0
    assert 0 < int(ignored.sum()) < len(samples) / 2
    assert (samples.labels[ignored] == dense_cases.NUM_CLASSES).all()
    assert set(samples.weights.tolist()) == {0.0, 1.0}


def test_anchors_outside_of_the_image_have_no_weight() -> None:
    detector = build('RetinaNet').train()
    inside = int((record(detector)[0].weights > 0).sum())
    detector.bbox_head.train_cfg.allowed_border = 0
    assert int((record(detector)[0].weights > 0).sum()) < inside / 2


def test_fcos_counts_every_location() -> None:
    assert (record(build('FCOS').train())[0].weights == 1).all()


# YOLOX, whose loss is not told labels


def test_yolox_gives_weight_to_the_foreground_alone() -> None:
    data = helpers.batch(num_boxes=4)
    empty = data['data_samples'][0]
    empty.gt_instances = empty.gt_instances[:0]
    detector = build('YOLOX').train()
    seen: list[Tensor] = []
    detector.bbox_head.loss_cls.register_forward_hook(lambda m, a, out: seen.extend(a))
    samples, _ = record(detector, data)
    foreground = samples.labels < dense_cases.NUM_CLASSES
    assert torch.equal(samples.weights, foreground.float())
    assert foreground.sum() == len(seen[0]) > 0
    assert sorted(samples.logits[foreground].tolist()) == sorted(seen[0].tolist())
    size = samples.locations.prod(dim=1).tolist()
    start = 0
    for cells in size:
        assert not foreground[start : start + cells].any()
        start += 2 * cells


def test_yolox_knows_the_class_of_a_box_that_is_quite_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overlap of zero makes a score of zero, from which no class can be told."""
    detector = build('YOLOX').train()
    assign = detector.bbox_head.assigner.assign

    def without_overlap(*args: Any, **kwargs: Any) -> Any:
        result = assign(*args, **kwargs)
        result.max_overlaps = torch.zeros_like(result.max_overlaps)
        return result

    expected = record(detector)[0].labels
    monkeypatch.setattr(detector.bbox_head.assigner, 'assign', without_overlap)
    assert torch.equal(record(detector)[0].labels, expected)
    assert len(expected.unique()) > 2


def test_yolox_is_itself_again_after_an_error() -> None:
    detector = build('YOLOX')
    assigner = detector.bbox_head.assigner
    tap = find_tap(detector, 'model')
    with pytest.raises(ValueError, match='stop'), tap.record(detector):
        raise ValueError('stop')
    assert detector.bbox_head.assigner is assigner
    assert '_get_targets_single' not in vars(detector.bbox_head)
    assert not detector.bbox_head._forward_hooks


@pytest.fixture
def first_iteration() -> Iterator[None]:
    hub = MessageHub.get_current_instance()
    hub.update_info('iter', 0)
    yield
    hub.pop_info('iter')


def test_the_teacher_gets_the_images_that_yolox_resized(
    tmp_path: Path, first_iteration: None
) -> None:
    teacher = helpers.build(dense_cases.detector_config('YOLOX', width=16), seed=1)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    cfg = dense_cases.detector_config('YOLOX')
    cfg.type = 'CalKDYOLOX'
    cfg.data_preprocessor.batch_augments = [
        dict(
            type='BatchSyncRandomResize',
            random_size_range=(160, 191),
            size_divisor=32,
            interval=1,
        )
    ]
    cfg.teacher = dict(
        config=dict(model=dense_cases.detector_config('YOLOX', width=16).to_dict()),
        checkpoint=str(tmp_path / 'teacher.pth'),
    )
    cfg.distillation = dict(type='BinaryKDLoss')
    detector = helpers.build(cfg)
    detector.init_weights()
    sizes: dict[str, list[tuple[int, ...]]] = {'student': [], 'teacher': []}
    networks = dict(student=detector, teacher=detector.teacher.network.detector)
    for who, network in networks.items():
        network.backbone.register_forward_pre_hook(
            lambda m, args, who=who: sizes[who].append(tuple(args[0].shape[-2:]))
        )
    for _ in range(2):
        helpers.loss(detector.train(), helpers.batch())
    assert sizes['student'] == sizes['teacher']
    assert sizes['student'][0] == (96, 96)
    assert sizes['student'][1] in ((160, 160), (192, 192))


# How another detector answers


def answers(name: str, **head: Any) -> tuple[nn.Module, tuple[Tensor, ...], Tensor, Any]:
    """A detector in eval mode, features, all rows of its whole head, and the question."""
    detector = build(name, **head).eval()
    sizes = [(24 // 2**i + 3, 20 // 2**i + 3) for i in range(5)]
    sizes = sizes[: len(find_tap(detector, 'model').geometry(detector).strides)]
    feats = tuple(torch.randn(2, 16, *size) for size in sizes)
    with torch.no_grad():
        maps = detector.bbox_head(feats)[0]
    asked = [(height - 1, width - 2) for height, width in sizes]
    expected = torch.cat(
        [
            m[..., :height, :width].movedim(1, -1).reshape(-1, dense_cases.NUM_CLASSES)
            for m, (height, width) in zip(maps, asked)
        ]
    )
    samples = HeadSamples(
        expected, torch.zeros(0), torch.zeros(0), torch.tensor(asked), activation='sigmoid'
    )
    return detector, feats, expected, samples


VARIANTS = [
    *((name, {}) for name in FAMILIES),
    # A head of mmdet that no config of its zoo has.
    ('RTMDet', dict(type='RTMDetHead', share_conv=None, exp_on_reg=None)),
    ('RTMDet', dict(share_conv=False)),
    ('RTMDet', dict(stacked_convs=2)),
    ('YOLOX', dict(use_depthwise=True, stacked_convs=2)),
    ('ATSS', dict(stacked_convs=0, feat_channels=16)),
]


@pytest.mark.parametrize(('name', 'head'), VARIANTS)
def test_the_classification_branch_is_the_whole_heads(name: str, head: dict[str, Any]) -> None:
    detector, feats, expected, samples = answers(name, **head)
    tap = find_tap(detector, 'model')
    with torch.no_grad():
        tap.keep(detector)
        found = tap.answer(detector, feats, samples).logits
        folded = tap.answer(fold_batchnorm(copy.deepcopy(detector)), feats, samples).logits
    assert torch.equal(found, expected)
    assert torch.allclose(folded, expected, atol=1e-4)
    assert expected.std() > 0.1
    left = {key.split('.')[1] for key in detector.state_dict() if key.startswith('bbox_head')}
    branch = tap.branches[type(detector.bbox_head)]
    assert left <= {branch.convs, branch.classifier}


def test_folding_leaves_the_logits_of_convolutions_that_are_shared() -> None:
    """mmcv would fold the BatchNorm of every level into the one convolution they share."""
    detector, feats, expected, samples = answers('RTMDet')
    tap = find_tap(detector, 'model')
    with torch.no_grad():
        found = tap.answer(fold_batchnorm(copy.deepcopy(detector)), feats, samples).logits
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ('student', 'teacher'), [('ATSS', 'GFL'), ('GFL', 'FCOS'), ('RetinaNet', 'RetinaNet')]
)
def test_a_teacher_that_pads_its_images_more_is_cropped(
    student: str, teacher: str, tmp_path: Path
) -> None:
    """Student's batch 96x96; the teacher's is 128x128, of which 12 of 16 cells are asked."""
    teacher_cfg = dense_cases.detector_config(teacher, width=16)
    teacher_cfg.data_preprocessor.pad_size_divisor = 128
    plain = helpers.build(teacher_cfg, seed=1)
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'teacher.pth')
    cfg = dense_cases.detector_config(student)
    cfg.type = f'CalKD{cfg.type}'
    cfg.teacher = dict(
        config=dict(model=teacher_cfg.to_dict()),
        checkpoint=str(tmp_path / 'teacher.pth'),
        calibrator=dict(type='TemperatureScaling', temperature=1.0),
    )
    cfg.distillation = dict(type='BinaryKDLoss')
    detector = helpers.build(cfg)
    detector.init_weights()
    given: list[Tensor] = []
    detector.teacher.network.register_forward_hook(
        lambda m, a, out: given.extend(each.logits for each in out)
    )
    helpers.loss(detector.train(), helpers.batch())
    with torch.no_grad():
        data = plain.data_preprocessor(helpers.batch(), False)
        assert data['inputs'].shape[-2:] == (128, 128)
        maps = plain.eval().bbox_head(plain.extract_feat(data['inputs']))[0]
    sizes = [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]
    expected = torch.cat(
        [m[..., :h, :w].movedim(1, -1).reshape(-1, 3) for m, (h, w) in zip(maps, sizes)]
    )
    assert torch.allclose(given[0], expected, atol=1e-4)


def test_maps_that_are_too_small_are_a_sentence() -> None:
    detector, feats, _, samples = answers('ATSS')
    small = tuple(feat[..., :-4] for feat in feats)
    with pytest.raises(ConfigError, match=r'feature maps, 27x19, are smaller .* 26x21'):
        find_tap(detector, 'model').answer(detector, small, samples)


# Who can ask whom


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr('calkd_det.taps.geometry.print_log', lambda line, **_: lines.append(line))
    return lines


POINTS = dict(FCOS=0.5, FoveaBox=0.5, ATSS=0.0, GFL=0.0, DDOD=0.0)


def geometry(name: str, **head: Any) -> Geometry:
    detector = helpers.build(dense_cases.detector_config(name, **head))
    return find_tap(detector, 'model').geometry(detector)


STRIDES = 'the class of each location of strides 8, 16, 32, 64, 128'


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('FCOS', f'{STRIDES}, at the centre of the cell'),
        ('FoveaBox', f'{STRIDES}, at the centre of the cell'),
        ('ATSS', f'{STRIDES}, at the corner of the cell'),
        ('GFL', f'{STRIDES}, at the corner of the cell'),
        ('DDOD', f'{STRIDES}, at the corner of the cell'),
        (
            'RTMDet',
            'the class of each location of strides 8, 16, 32, at the corner of the cell',
        ),
        (
            'YOLOX',
            'the class, given an object, of each location of strides 8, 16, 32, at the corner of '
            'the cell',
        ),
        (
            'RetinaNet',
            'the class of anchor boxes at strides 8, 16, 32, 64, 128 (pixels at stride 8: '
            '45.3x22.6, 57x28.5, 71.8x35.9, 32, 40.3, 50.8, 22.6x45.3, 28.5x57, 35.9x71.8)',
        ),
    ],
)
def test_what_is_classified_in_words(name: str, words: str) -> None:
    assert str(geometry(name)) == words


def test_rtmdet_and_its_instance_head_can_answer_each_other() -> None:
    boxes, instances = geometry('RTMDet'), geometry('RTMDet-Ins')
    assert boxes.can_answer(instances)
    assert boxes.has_points_of(instances)


def test_points_beside_the_cells_corner_in_words() -> None:
    quarter = Geometry('locations', strides=((8.0, 8.0),), points=((2.0, 2.0),))
    assert str(quarter).endswith('0.25 strides from the corner of the cell')
    oblong = Geometry('locations', strides=((8.0, 4.0),), points=((4.0, 1.0),))
    assert str(oblong).endswith('strides 8x4, 0.5x0.25 strides from the corner of the cell')
    both = Geometry('locations', strides=((8.0,) * 2, (16.0,) * 2), points=((4.0,) * 2, (0.0,) * 2))
    assert str(both).endswith('the first of each at (4, 4), (0, 0) pixels')


def anchors(**changes: Any) -> dict[str, Any]:
    default = dict(
        type='AnchorGenerator',
        octave_base_scale=4,
        scales_per_octave=3,
        ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
    )
    return dict(anchor_generator={**default, **changes})


@pytest.mark.parametrize(
    'changes',
    [
        dict(octave_base_scale=5),
        dict(scales_per_octave=2),
        dict(ratios=[0.5, 1.0, 2.1]),
        dict(ratios=[2.0, 1.0, 0.5]),
        dict(scale_major=False),
        dict(center_offset=0.5),
        dict(base_sizes=[8, 16, 32, 64, 100]),
        dict(ratios=[1.0], scales_per_octave=1),
    ],
)
def test_other_anchors_cannot_answer(changes: dict[str, Any]) -> None:
    own = geometry('RetinaNet')
    assert geometry('RetinaNet', **anchors()).can_answer(own)
    other = geometry('RetinaNet', **anchors(**changes))
    assert not other.can_answer(own)
    assert not own.can_answer(other)


def test_anchors_are_compared_with_a_tolerance() -> None:
    own = geometry('RetinaNet')
    for scale, expected in ((4 + 1e-6, True), (4.1, False)):
        assert geometry('RetinaNet', **anchors(octave_base_scale=scale)).can_answer(own) is expected


@pytest.mark.parametrize(('first', 'second'), itertools.combinations(POINTS, 2))
def test_points_decide_who_is_warned_of(first: str, second: str) -> None:
    """Heads of the same strides can answer each other; only points that differ are told."""
    ours, theirs = geometry(first), geometry(second)
    assert ours.can_answer(theirs)
    assert theirs.can_answer(ours)
    assert ours.has_points_of(theirs) == (POINTS[first] == POINTS[second])


@pytest.mark.parametrize(('student', 'teacher'), [('GFL', 'FCOS'), ('FCOS', 'ATSS')])
def test_a_teacher_whose_points_are_elsewhere_is_warned_of_once(
    student: str, teacher: str, tmp_path: Path, log_lines: list[str]
) -> None:
    distilled(student, teacher, {}, tmp_path).init_weights()
    (warning,) = [line for line in log_lines if 'beside the student' in line]
    assert warning.startswith(f'model.teacher.config: the student classifies {geometry(student)}')
    assert f'the teacher {geometry(teacher)}.' in warning


@pytest.mark.parametrize(('student', 'teacher'), [('GFL', 'ATSS'), ('FCOS', 'FCOS')])
def test_a_teacher_of_the_same_points_is_not_warned_of(
    student: str, teacher: str, tmp_path: Path, log_lines: list[str]
) -> None:
    distilled(student, teacher, {}, tmp_path).init_weights()
    assert not [line for line in log_lines if 'beside the student' in line]


def distilled(student: str, teacher: str, head: dict[str, Any], folder: Path) -> nn.Module:
    """A student with a teacher whose head has further keys."""
    teacher_cfg = dense_cases.detector_config(teacher, **head)
    torch.save(dict(state_dict=helpers.build(teacher_cfg).state_dict()), folder / 'teacher.pth')
    cfg = dense_cases.detector_config(student)
    cfg.type = f'CalKD{cfg.type}'
    cfg.teacher = dict(
        config=dict(model=teacher_cfg.to_dict()), checkpoint=str(folder / 'teacher.pth')
    )
    cfg.distillation = dict(type='BinaryKDLoss')
    return helpers.build(cfg)


@pytest.mark.parametrize(
    ('student', 'teacher', 'words'),
    [
        ('RetinaNet', ('RetinaNet', anchors(octave_base_scale=5)), r'45\.3x22\.6, .* 56\.6x28\.3'),
        ('ATSS', ('RetinaNet', {}), r'each location of strides 8.* the teacher .*anchor boxes'),
        ('RTMDet', ('YOLOX', {}), r'the class of each .* the class, given an object'),
        ('YOLOX', ('RTMDet', {}), r'the class, given an object, .* the class of each'),
        ('RTMDet', ('ATSS', {}), r'strides 8, 16, 32, at .* the teacher .* 8, 16, 32, 64, 128'),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_refused(
    student: str, teacher: tuple[str, dict], words: str, tmp_path: Path
) -> None:
    detector = distilled(student, *teacher, tmp_path)
    with pytest.raises(ConfigError, match=f'model.teacher.config: the student classifies.*{words}'):
        detector.init_weights()


@pytest.mark.parametrize('name', REFUSED_CONFIGS)
def test_heads_that_cannot_be_read_are_refused_with_the_reason(name: str) -> None:
    model = get_config(f'mmdet::{REFUSED_CONFIGS[name]}').model
    detector = nn.Module()
    detector.bbox_head = helpers.build(
        ConfigDict({**model.bbox_head, 'train_cfg': model.train_cfg, 'test_cfg': model.test_cfg})
    )
    assert type(detector.bbox_head).__name__ == name
    with pytest.raises(ConfigError, match=f'with {name}: {REFUSED[name]}'):
        find_tap(detector, 'model')


@pytest.mark.parametrize(
    ('name', 'head', 'reason'),
    [
        ('RTMDet', dict(with_objectness=True), 'take with_objectness=False'),
        ('ATSS', dict(loss_cls=dict(type='CrossEntropyLoss')), 'must have use_sigmoid=True'),
    ],
)
def test_settings_that_cannot_be_read(name: str, head: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        find_tap(helpers.build(dense_cases.detector_config(name, **head)), 'model')


# What a calibration looks at


@pytest.fixture
def small_share(monkeypatch: pytest.MonkeyPatch) -> int:
    """So few that there is a rest to draw from."""
    for name in ('NUM_HARDEST', 'NUM_DRAWN'):
        monkeypatch.setattr(f'calkd_det.taps.dense_samples.{name}', 20)
    return 20


def sample_share(
    detector: nn.Module, seeds: tuple[int, int] = (3, 4), masks: bool | None = None
) -> HeadSamples:
    data = detector.data_preprocessor(batch(detector, masks), False)
    samples = find_tap(detector, 'model').sample_sets(
        detector.eval(), data['inputs'], data['data_samples'], seeds
    )
    assert list(samples) == ['distillation']
    return samples['distillation']


@pytest.mark.parametrize('name', FAMILIES)
def test_a_share_of_the_background_stands_for_all(name: str, small_share: int) -> None:
    detector = build(name).eval()
    everything, _ = record(detector)
    share = sample_share(detector)
    counted = everything.weights > 0
    background = everything.labels == dense_cases.NUM_CLASSES
    assert not share.logits.requires_grad
    assert share.weights.sum() == pytest.approx(float(everything.weights.sum()), rel=1e-5)
    assert (share.labels < 3).sum() == (counted & ~background).sum() > 0
    for image in (0, 1):
        mine = share.locations[:, 0] == image
        kept = int((mine & (share.labels == 3)).sum())
        assert kept == (0 if name == 'YOLOX' else 2 * small_share)
    # The number within the image leads to the same logits and label.
    num_images = len(helpers.batch()['inputs'])
    per_image = everything.locations.prod(dim=1) * (len(everything) // num_images)
    per_image = per_image // everything.locations.prod(dim=1).sum()
    starts = torch.cat([torch.zeros(1, dtype=torch.long), per_image.cumsum(0)])
    for row in range(0, len(share), 7):
        image, number = share.locations[row].tolist()
        level = int((starts[1:] <= number).sum())
        at = int(num_images * starts[level] + image * per_image[level] + number - starts[level])
        assert torch.equal(share.logits[row], everything.logits[at])
        assert share.labels[row] == everything.labels[at]


def test_the_likelihood_of_the_share_is_without_bias(small_share: int) -> None:
    detector = build('RetinaNet').eval()
    everything, _ = record(detector)
    kind = dict(activation='sigmoid')
    logits = everything.logits.detach()
    expected = negative_log_likelihood(
        logits, everything.labels, weights=everything.weights, temperature=1.5, **kind
    )
    found = torch.tensor(
        [
            negative_log_likelihood(s.logits, s.labels, weights=s.weights, temperature=1.5, **kind)
            for s in (sample_share(detector, (seed, seed + 1000)) for seed in range(40))
        ]
    )
    error = float(found.std()) / 40**0.5
    assert 0 < error < 0.02 * expected
    assert abs(float(found.mean()) - expected) < 3 * error


def test_the_draw_is_the_seeds(small_share: int) -> None:
    detector = build('ATSS').eval()
    first, again, other = (sample_share(detector, seeds) for seeds in ((3, 4), (3, 4), (3, 5)))
    assert torch.equal(first.locations, again.locations)
    own = [s.locations[s.locations[:, 0] == 0] for s in (first, other)]
    assert torch.equal(*own)
    assert not torch.equal(first.locations, other.locations)


def test_without_a_rest_everything_is_kept() -> None:
    detector = build('GFL').eval()
    everything, _ = record(detector)
    share = sample_share(detector)
    assert len(share) == int((everything.weights > 0).sum())
    assert (share.weights == 1).all()


def test_an_instance_head_needs_boxes_alone_and_is_left_as_it_was() -> None:
    """Without masks its assigner is given whole boxes, as the masks of the helpers are."""
    detector = build('RTMDet-Ins').eval()
    with_masks, without = sample_share(detector), sample_share(detector, masks=False)
    foreground = [(each.labels < dense_cases.NUM_CLASSES).sum() for each in (with_masks, without)]
    assert foreground[0] > 0
    assert torch.equal(*foreground)
    assert 'loss_mask_by_feat' not in vars(detector.bbox_head)
