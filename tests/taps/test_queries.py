"""Queries: matched to those of a teacher, recorded, denoised, calibrated, and refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import dense_cases
import helpers
import pytest
import query_cases
import torch
from helpers import CLASSES
from pairs import distillation_losses, freeze_batchnorm, save
from query_cases import distilled
from torch import Tensor, nn

from calkd_det.detectors import finite_watch
from calkd_det.errors import ConfigError
from calkd_det.hooks import TeacherCalibrationHook
from calkd_det.knowledge import Activation, HeadAnswer, HeadSamples
from calkd_det.measurement.collect import collect_samples
from calkd_det.taps import CLASS_AND_BOX, DENOISING, QueryTap
from calkd_det.taps.query_matching import Queries, match_queries, matching_costs
from calkd_det.taps.self_test import check_answers
from calkd_det.teachers import network

NUM_CLASSES = len(CLASSES)


def random_queries(number: int, seed: int, images: int = 2, columns: int = NUM_CLASSES) -> Queries:
    generator = torch.Generator().manual_seed(seed)
    return Queries(
        2 * torch.randn(images, number, columns, generator=generator),
        torch.rand(images, number, 4, generator=generator) * 0.5 + 0.1,
    )


# Matching


@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
@pytest.mark.parametrize(('own', 'others'), [(4, 4), (3, 5), (5, 3), (1, 4), (4, 1)])
def test_matching_is_that_of_all_assignments_which_costs_least(
    own: int, others: int, activation: Activation
) -> None:
    student, teacher = random_queries(own, seed=1), random_queries(others, seed=2)
    costs = matching_costs(student, teacher, activation)
    matches = match_queries(student, teacher, activation)
    for cost, match in zip(costs, matches):
        rows = (match >= 0).nonzero().squeeze(1)
        assert len(rows) == min(own, others)
        assert len(set(match[rows].tolist())) == len(rows)
        if own <= others:
            totals = [cost[range(own), order].sum() for order in permutations(range(others), own)]
        else:
            totals = [
                cost[order, range(others)].sum() for order in permutations(range(own), others)
            ]
        assert cost[rows, match[rows]].sum() == pytest.approx(float(min(totals)), abs=1e-5)


@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
def test_costs_by_their_definition(activation: Activation) -> None:
    student, teacher = random_queries(3, seed=1), random_queries(2, seed=2)
    costs = matching_costs(student, teacher, activation)
    for image, row, column in ((0, 0, 0), (0, 2, 1), (1, 1, 0)):
        z, t = student.logits[image, row], teacher.logits[image, column]
        if activation == 'sigmoid':
            ce = nn.functional.binary_cross_entropy_with_logits(z, t.sigmoid(), reduction='sum')
        else:
            ce = nn.functional.cross_entropy(z, t.softmax(dim=0))
        a, b = student.boxes[image, row], teacher.boxes[image, column]
        expected = ce + 5 * (a - b).abs().sum() - 2 * query_cases.giou(a, b)
        assert costs[image, row, column] == pytest.approx(float(expected), rel=1e-5)


def test_equal_queries_are_each_matched_once() -> None:
    same = Queries(torch.zeros(1, 5, 3), torch.full((1, 5, 4), 0.5))
    matches = match_queries(same, same, 'sigmoid')
    assert sorted(matches[0].tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(matches, match_queries(same, same, 'sigmoid'))


def test_queries_that_do_not_count_take_no_match_from_others() -> None:
    student, teacher = random_queries(4, seed=1), random_queries(4, seed=1)
    counted = torch.tensor([[True, True, False, True], [True, True, True, True]])
    for own, other in (
        (Queries(student.logits, student.boxes, counted), teacher),
        (student, Queries(teacher.logits, teacher.boxes, counted)),
    ):
        matches = match_queries(own, other, 'sigmoid')
        assert matches.tolist() == [[0, 1, -1, 3], [0, 1, 2, 3]]


def test_a_query_of_the_teacher_with_nan_is_matched_last() -> None:
    student, teacher = random_queries(3, seed=1), random_queries(4, seed=2)
    teacher.logits[0, 1] = float('nan')
    matches = match_queries(student, teacher, 'sigmoid')
    assert (matches >= 0).all()
    assert 1 not in matches[0].tolist()
    teacher.logits[:] = float('nan')
    assert (match_queries(student, teacher, 'sigmoid') >= 0).all()


def test_the_host_waits_once_for_the_costs_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, 'cpu', lambda self: waits.append(self.shape) or cpu(self))
    match_queries(random_queries(5, seed=1, images=3), random_queries(4, 2, images=3), 'sigmoid')
    assert waits == [(3, 5, 4)]


# Recording and answers


def recorded(detector: nn.Module, data: dict[str, Any]) -> list[Any]:
    torch.manual_seed(5)
    batch = detector.data_preprocessor(copy.deepcopy(data), True)
    with QueryTap().record(detector, CLASS_AND_BOX, batch['data_samples']) as samples:
        detector.loss(batch['inputs'], batch['data_samples'])
    return samples


@pytest.mark.parametrize('name', query_cases.ZOO)
@pytest.mark.parametrize('num_boxes', [0, 3, 15])
def test_each_object_has_a_query_of_its_class_where_there_are_enough(
    name: str, num_boxes: int
) -> None:
    detector = helpers.build(query_cases.detector_config(name, layers=3)).train()
    data = helpers.batch(num_boxes=num_boxes)
    samples = [each for each in recorded(detector, data) if each.name != DENOISING]
    assert [each.name for each in samples] == ['d0', 'd1', '']
    for each in samples:
        assert len(each) == 2 * 12
        number = min(num_boxes, 12)
        found = each.labels.view(2, 12)
        for labels, sample in zip(found, data['data_samples']):
            objects = labels[labels < NUM_CLASSES].tolist()
            assert len(objects) == number
            remaining = sample.gt_instances.labels.tolist()
            for label in objects:
                remaining.remove(label)
        assert torch.equal(each.boxes.rows, each.foreground())
        assert each.avg_factor == pytest.approx(2 * number or 1) or name == 'DETR'
        sizes = torch.tensor([[96.0, 64, 96, 64], [80, 96, 80, 96]])[each.boxes.rows // 12]
        x, y, w, h = each.boxes.normalised.unbind(dim=1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
        torch.testing.assert_close(each.boxes.boxes, corners * sizes)


# The parts of a DDQ share a dict, from which the copy of its heads is cut off.
@pytest.mark.parametrize('name', sorted(query_cases.ZOO.keys() - {'DDQ'}))
def test_answers_are_those_of_the_whole_head_on_random_features(name: str) -> None:
    detector = helpers.build(query_cases.detector_config(name)).eval()
    check_answers(QueryTap(), detector, 'model', CLASS_AND_BOX)


# Distilled detectors


@pytest.fixture
def not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding rounds, and the L1 distance has a slope of its own at its best value."""
    monkeypatch.setattr(network, 'fold_batchnorm', lambda detector: detector)


@pytest.mark.usefixtures('not_folded')
@pytest.mark.parametrize('name', ['DINO', 'DDQ'])
def test_all_layers_and_denoising_queries_of_a_detector_that_teaches_itself(
    name: str, tmp_path: Path
) -> None:
    cfg = query_cases.detector_config(name)
    path = tmp_path / 'teacher.pth'
    itself = helpers.build(cfg)
    save(itself, path, CLASSES)
    detector = distilled(cfg, cfg, path, denoising=True, stages=[0, 1])
    detector.load_state_dict(itself.state_dict())
    freeze_batchnorm(detector)
    runs = []
    network = detector.teacher.network.detector
    for part in (network.encoder, network.decoder):
        part.register_forward_hook(lambda module, args, output: runs.append(module))
    names = {f'{layer}loss_kd_{kind}' for layer in ('d0.', '', 'dn.') for kind in ('cls', 'bbox')}
    for counts in ((3, 3), (1, 3), (0, 2), (0, 0)):
        data = helpers.batch()
        for sample, count in zip(data['data_samples'], counts):
            sample.gt_instances = sample.gt_instances[:count]
        losses = distillation_losses(helpers.loss(detector, data))
        assert losses.keys() == names
        # torch 2.1 and the forks round attention in eval mode otherwise than in training.
        bound = 1e-5 if helpers.TORCH_2_1 or helpers.ONEDL else 1e-6
        assert all(abs(float(value)) < bound for value in losses.values()), losses
    assert len(runs) == 2 * 4
    with torch.no_grad():
        network.dn_query_generator.label_embedding.weight.add_(1)
    losses = distillation_losses(helpers.loss(detector, helpers.batch()))
    assert losses['dn.loss_kd_cls'] > 1e-6
    assert losses['loss_kd_cls'] < 1e-6


@pytest.mark.usefixtures('not_folded')
@pytest.mark.parametrize('name', ['DINO', 'DDQ'])
def test_noised_labels_are_those_of_the_teachers_classes(name: str, tmp_path: Path) -> None:
    """The teacher is the student with its classes in another order."""
    cfg = query_cases.detector_config(name)
    order = [2, 0, 1]  # of the teacher's classes among the student's
    itself = helpers.build(cfg)
    teacher = helpers.build(cfg)
    teacher.load_state_dict(itself.state_dict())
    with torch.no_grad():
        for key, value in teacher.state_dict().items():
            if 'cls_branches' in key or 'label_embedding' in key:
                value.copy_(value[order].clone())
    path = tmp_path / 'teacher.pth'
    save(teacher, path, tuple(CLASSES[label] for label in order))
    detector = distilled(cfg, cfg, path, denoising=True)
    detector.load_state_dict(itself.state_dict())
    freeze_batchnorm(detector)
    losses = distillation_losses(helpers.loss(detector, helpers.batch()))
    assert losses.keys() >= {'dn.loss_kd_cls', 'loss_kd_cls'}
    assert all(abs(float(value)) < 1e-6 for value in losses.values()), losses


def test_padding_of_denoising_queries_does_not_count() -> None:
    detector = helpers.build(query_cases.detector_config('DINO')).train()
    data = helpers.batch()
    data['data_samples'][1].gt_instances = data['data_samples'][1].gt_instances[:1]
    samples = recorded(detector, data)[-1]
    assert samples.name == DENOISING
    halves = samples.weights.view(2, -1, 3)
    assert halves[0].all()
    assert halves[1, :, 0].all()
    assert not halves[1, :, 1:].any()
    labels = data['data_samples'][0].gt_instances.labels
    found = samples.labels.view(2, -1, 2, 3)
    assert (found[0, :, 0] == labels).all()  # the positive half of each group
    assert (found[:, :, 1] == NUM_CLASSES).all()


def test_another_number_of_layers_and_queries(tmp_path: Path) -> None:
    student = query_cases.detector_config('Deformable DETR')
    for queries in (5, 20):
        teacher = query_cases.detector_config('DINO', queries=queries, layers=3)
        save(helpers.build(teacher, seed=1), tmp_path / 'teacher.pth', CLASSES)
        detector = distilled(student, teacher, tmp_path / 'teacher.pth', stages=[0, 2])
        losses = distillation_losses(helpers.loss(detector, helpers.batch()))
        assert losses.keys() == {
            'd0.loss_kd_cls',
            'd0.loss_kd_bbox',
            'loss_kd_cls',
            'loss_kd_bbox',
        }
        assert all(value.isfinite() and value > 0 for value in losses.values())
    with pytest.raises(ConfigError, match=r'model\.teacher\.stages must hold one number below 3'):
        distilled(student, teacher, tmp_path / 'teacher.pth', stages=[0, 3])


def test_nan_of_the_teacher_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(finite_watch, 'print_log', lambda text, **_: logged.append(text))
    cfg = query_cases.detector_config('Deformable DETR')
    save(helpers.build(cfg), tmp_path / 'teacher.pth', CLASSES)
    detector = distilled(cfg, cfg, tmp_path / 'teacher.pth')
    with torch.no_grad():
        detector.teacher.network.detector.bbox_head.cls_branches[0].bias[1] = float('nan')
    losses = distillation_losses(helpers.loss(detector, helpers.batch()))
    assert losses.keys() == {'loss_kd_cls', 'loss_kd_bbox'}
    assert all(value == 0 for value in losses.values())
    helpers.loss(detector, helpers.batch())
    assert len(logged) == 1
    assert 'of the teacher are NaN or infinite' in logged[0]


@pytest.mark.parametrize(
    ('student', 'teacher', 'options', 'sentence'),
    [
        ('Deformable DETR', 'DETR', {}, 'the teacher classifies by softmax, the student by sigm'),
        ('RetinaNet', 'Deformable DETR', {}, 'the student classifies .*, the teacher queries: it'),
        ('Deformable DETR', 'RetinaNet', {}, 'the student classifies queries, the teacher'),
        ('DINO', 'Deformable DETR', dict(denoising=True), 'but the teacher, a DeformableDETR, has'),
        ('DAB-DETR', 'DINO', dict(denoising=True), 'but the student, a CalKDDABDETR, has no den'),
        ('DINO', 'DINO', dict(denoising='yes'), "must be True or False, but is 'yes'"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    student: str, teacher: str, options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    configs = [
        (query_cases if name in query_cases.ZOO else dense_cases).detector_config(name)
        for name in (student, teacher)
    ]
    with pytest.raises(ConfigError, match=sentence):
        distilled(*configs, tmp_path / 'teacher.pth', **options)


def test_a_checkpoint_of_a_trained_ddq_is_a_teacher(tmp_path: Path) -> None:
    cfg = query_cases.detector_config('DDQ')
    trained = helpers.build(cfg).train()
    helpers.loss(trained, helpers.batch())
    assert any(key.startswith('decoder.aux_reg_branches') for key in trained.state_dict())
    save(trained, tmp_path / 'teacher.pth', CLASSES)
    detector = distilled(cfg, cfg, tmp_path / 'teacher.pth')
    assert distillation_losses(helpers.loss(detector, helpers.batch()))


def test_samples_without_an_answer_count_for_nothing() -> None:
    samples = HeadSamples(
        logits=torch.zeros(4, 3),
        labels=torch.tensor([0, 1, 2, 3]),
        weights=torch.ones(4),
        locations=None,
        activation='sigmoid',
    )
    answer = HeadAnswer(torch.ones(4, 3), answered=torch.tensor([True, False, True, True]))
    answered, _ = samples.without_non_finite(answer)
    assert answered.weights.tolist() == [1, 0, 1, 1]
    hook = TeacherCalibrationHook()
    denoising = replace(samples, name=DENOISING)
    hook._record_samples(nn.Identity(), ((), [samples, denoising]), [answer, answer])
    found = hook._bin_samples()
    assert found['teacher_ece'].num_samples == 2
    assert found['teacher_ece_all'].num_samples == 3


# Calibration


@pytest.mark.parametrize('name', query_cases.ZOO)
def test_sample_sets_of_matched_queries_and_of_the_rest(name: str) -> None:
    detector = helpers.build(query_cases.detector_config(name)).eval()
    data = detector.data_preprocessor(helpers.batch(num_boxes=4), False)
    sets = QueryTap().sample_sets(detector, data['inputs'], data['data_samples'], [0, 1])
    assert set(sets) == set(QueryTap.set_descriptions)
    whole, matched, rest = (sets[name] for name in ('distillation', 'matched', 'rest'))
    assert len(matched) == 2 * 4
    assert len(matched) + len(rest) == len(whole) <= 2 * 12
    assert (matched.labels < NUM_CLASSES).all()
    assert (rest.labels == NUM_CLASSES).all()
    for image, sample in enumerate(data['data_samples']):
        own = matched.labels[matched.locations[:, 0] == image]
        assert sorted(own.tolist()) == sorted(sample.gt_instances.labels.tolist())
    with torch.no_grad():
        feats = detector.extract_feat(data['inputs'])
        inputs = detector.forward_transformer(feats, data['data_samples'])
        scores, _ = detector.bbox_head(**inputs)
    expected = scores[-1][whole.locations[:, 0], whole.locations[:, 1]]
    torch.testing.assert_close(whole.logits, expected)
    assert whole.activation == ('softmax' if name == 'DETR' else 'sigmoid')


def test_a_detector_without_an_assigner_cannot_be_calibrated() -> None:
    cfg = query_cases.detector_config('DETR', train_cfg=None)
    detector = helpers.build(cfg).eval()
    with pytest.raises(ConfigError, match=r'model\.train_cfg has no assigner'):
        QueryTap().sample_sets(detector, torch.zeros(1, 3, 64, 64), [], [0])


def test_calibration_collects_queries_image_by_image() -> None:
    detector = helpers.build(query_cases.detector_config('DINO'))
    dataset = []
    for number in range(3):
        data = helpers.batch(sizes=[(64, 96)], num_boxes=number, seed=number)
        data['data_samples'][0].set_metainfo(dict(img_id=number))
        dataset.append(dict(inputs=data['inputs'][0], data_samples=data['data_samples'][0]))
    stores = collect_samples(detector, dataset, batch_size=2)
    assert stores.keys() == QueryTap.set_descriptions.keys()
    assert stores['matched'].groups.tolist() == [1, 2, 2]
    for image, labels in enumerate(stores['rest'].groups.bincount()):
        assert labels == 12 - image
    assert len(stores['distillation']) == 3 * 12
