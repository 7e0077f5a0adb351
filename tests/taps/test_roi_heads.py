"""The RoI heads of mmdet that the taps were tried on: read, and answered, as mmdet computes."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import replace

import helpers
import pytest
import torch
from cases import Case
from mmengine.hub import get_config
from torch import nn
from two_stage_cases import CASCADE, CASES, FASTER, READ

from calkd_det.errors import ConfigError
from calkd_det.taps import find_tap

every_head = pytest.mark.parametrize('case', [*CASES, *READ], ids=lambda case: case.name)


@every_head
def test_a_tap_reads_and_answers_what_mmdet_computes(case: Case) -> None:
    student, teacher = helpers.build(case.student), helpers.build(case.teacher, seed=1).eval()
    for seed, detector in enumerate((student, teacher)):
        case.sharpen(detector, seed)
    watched, asked = copy.deepcopy(student), copy.deepcopy(teacher)
    torch.manual_seed(5)
    seen = case.head.capture(case, student.train(), teacher)

    tap = find_tap(watched, 'model')
    torch.manual_seed(5)
    with tap.record(watched.train()) as samples:
        helpers.loss(watched, case.batch())
    assert [each.name for each in samples] == list(tap.classifiers(watched))
    for ours, theirs in zip(samples, seen, strict=True):
        assert len(ours) > 16
        assert torch.equal(ours.logits, theirs.student)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.weights, theirs.weights)
        assert (f'{ours.name}.' if ours.name else '', ours.factor) == (theirs.name, theirs.factor)

    other = find_tap(asked, 'model')
    other.keep(asked)
    calls: Counter[str] = Counter()
    for name, module in asked.named_modules():
        module.register_forward_hook(lambda m, args, output, name=name: calls.update([name]))
    stages = case.teacher_options.get('stages', range(len(samples)))
    with torch.no_grad():
        data = asked.data_preprocessor(case.batch(), False)
        feats = other.prepare(asked, asked.extract_feat(data['inputs']))
        for ours, stage, theirs in zip(samples, stages, seen):
            question = replace(ours, name=other.classifiers(asked)[stage])
            answer = other.answer(asked, feats, question).logits
            torch.testing.assert_close(answer, theirs.teacher, rtol=1e-5, atol=1e-5)
    assert not [name for name in calls if re.search(case.head.not_asked, name)]
    kept = [name for name, module in asked.named_modules() if module._parameters]
    unused = [name for name in kept if calls[name] == 0]
    assert not unused or 'stages' in case.teacher_options, unused


@every_head
def test_sample_sets_need_boxes_alone_and_leave_the_head_as_it_was(case: Case) -> None:
    detector = helpers.build(case.teacher).eval()
    case.sharpen(detector, seed=3)
    tap = find_tap(detector, 'model')
    before = state(detector)
    data = detector.data_preprocessor(helpers.batch(sizes=((96, 96),) * 2), False)
    # Caffe's mean has no standard deviation beside it. On such images the deltas of an untrained
    # RPN reach 68, and what float32 rounds in a batch of one and of two moves a box by 3e-3 pixels.
    images, data_samples = data['inputs'] / data['inputs'].std(), data['data_samples']
    sets = tap.sample_sets(detector, images, data_samples, [7, 8])
    assert state(detector) == before
    assert set(sets) <= set(tap.set_descriptions)
    names = tap.classifiers(detector)
    if names == ('',):
        boxes = {'proposals', 'detections'} - ({'detections'} if case.name == 'Grid' else set())
        assert sets.keys() == {'distillation', *boxes}
    else:
        assert list(sets) == ['distillation', *names]
        for column in ('logits', 'labels', 'locations'):
            parts = [getattr(sets[name], column) for name in names]
            assert torch.equal(getattr(sets['distillation'], column), torch.cat(parts))
        # The boxes of a stage are those before it, refined.
        first, second = (set(map(tuple, sets[name].locations.tolist())) for name in names[:2])
        assert len(second - first) > 16

    # What is sampled of an image depends on its seed alone.
    own = tap.sample_sets(detector, images[1:], data_samples[1:], [8])['distillation']
    both = sets['distillation']
    torch.testing.assert_close(
        both.locations[both.locations[:, 0] == 1][:, 1:], own.locations[:, 1:], atol=1e-4, rtol=0
    )


def state(detector: nn.Module) -> str:
    """A detector's modules and the attributes of its RoI head, as text."""
    names = [name for name, _ in detector.named_modules()]
    roi_head = {key: str(value) for key, value in vars(detector.roi_head).items()}
    return str((names, roi_head))


SEESAW = dict(type='SeesawLoss', num_classes=3)
SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)


@pytest.mark.parametrize(
    ('head', 'config', 'changes', 'reason'),
    [
        ('TridentRoIHead', 'tridentnet/tridentnet_r50-caffe_1x_coco.py', {}, 'samples RoIs of its'),
        ('SparseRoIHead', 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', {}, 'own queries'),
        (
            'MultiInstanceRoIHead',
            'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py',
            {},
            'no label of its own',
        ),
        ('StandardRoIHead', FASTER, dict(loss_cls=SEESAW), 'not one softmax'),
        ('CascadeRoIHead', CASCADE, dict(loss_cls=SEESAW), 'not one softmax'),
        ('StandardRoIHead', FASTER, dict(loss_cls=SIGMOID), 'trained by a sigmoid'),
        ('CascadeRoIHead', CASCADE, dict(loss_cls=SIGMOID), 'trained by a sigmoid'),
    ],
)
def test_heads_that_cannot_be_read_are_refused_with_the_reason(
    head: str, config: str, changes: dict, reason: str
) -> None:
    model = get_config(f'mmdet::{config}').model
    model.backbone.init_cfg = None
    heads = model.roi_head.bbox_head
    for cfg in heads if isinstance(heads, list) else [heads]:
        cfg.update(changes)
        if changes:
            cfg.num_classes = 3
    with pytest.raises(ConfigError, match=f'model: .* with {head}: .*{reason}'):
        find_tap(helpers.build(model), 'model')
