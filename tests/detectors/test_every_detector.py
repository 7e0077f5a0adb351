"""What every distilled detector promises: the plain detector, plus one loss a classifier."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from cases import Captured, Case
from pairs import (
    Pair,
    Steps,
    assert_same_tensors,
    count_calls,
    distillation_losses,
    distilled_config,
    freeze_batchnorm,
    gradient_norm,
    make_teacher,
    one_step,
    plain,
    save,
)
from torch import Tensor, nn

import calkd_det.losses

LOSSES = {
    name: cls
    for name in calkd_det.losses.__all__
    if isinstance(cls := getattr(calkd_det.losses, name), type) and hasattr(cls, 'activation')
}
DIAGNOSTICS = {'teacher_confidence', 'teacher_accuracy', 'teacher_agreement'}


def captured(case: Case, detector: nn.Module, teacher: nn.Module) -> list[Captured]:
    """What plain detectors see in the step that ``torch.manual_seed(5)`` makes of a student."""
    student = plain(case, like=detector)
    torch.manual_seed(5)
    return case.head.capture(case, student, teacher)


def reference_loss(loss: nn.Module, seen: Captured, teacher: Tensor) -> Tensor:
    """A loss in float64; that of the KD loss by its definition.

    Args:
        loss: The loss module.
        seen: What was captured.
        teacher: The teacher's calibrated logits, over the student's classes, float64.
    """
    student, weights = seen.student.double(), seen.weights.double()
    if type(loss).__name__ != 'KDLoss':
        return loss(student, teacher, seen.labels, weights, seen.avg_factor)
    log_s = (student / loss.tau).log_softmax(dim=1)
    log_t = (teacher / loss.tau).log_softmax(dim=1)
    divergence = (log_t.exp() * (log_t - log_s)).sum(dim=1)
    return loss.loss_weight * loss.tau**2 * (weights * divergence).sum() / (weights > 0).sum()


class TestEveryDetector:
    # The student stays the plain detector

    def test_modules_and_state_dict_are_the_plain_ones(self, pair: Pair) -> None:
        student = plain(pair.case)
        assert list(pair.detector.state_dict()) == list(student.state_dict())
        assert [name for name, _ in pair.detector.named_modules()] == [
            name for name, _ in student.named_modules()
        ]

    def test_initial_weights_are_the_plain_ones(self, pair: Pair) -> None:
        found = []
        for cfg in (pair.case.student, distilled_config(pair.case, pair.checkpoint)):
            built = helpers.build(cfg, seed=11)
            built.init_weights()
            found.append((built.state_dict(), torch.get_rng_state()))
        (weights, state), (our_weights, our_state) = found
        assert_same_tensors(weights, our_weights)
        assert torch.equal(state, our_state)

    def test_weight_0_is_the_plain_step_bit_for_bit(
        self, pair: Pair, steps: Steps, tmp_path: Path
    ) -> None:
        nowhere = tmp_path / 'nowhere.pth'
        off = helpers.build(distilled_config(pair.case, nowhere, distillation=dict(loss_weight=0)))
        off.load_state_dict(pair.detector.state_dict())
        step = one_step(off.train(), pair.case)
        assert_same_tensors(step.logs, steps.plain.logs)
        assert_same_tensors(step.grads, steps.plain.grads)
        assert torch.equal(step.rng_state, steps.plain.rng_state)

    def test_switched_on_leaves_the_students_own_losses_and_sampling(
        self, case: Case, steps: Steps
    ) -> None:
        own, logs = (
            {k: v for k, v in s.logs.items() if k != 'loss'} for s in (steps.plain, steps.ours)
        )
        grads, plain_grads = steps.ours.grads, steps.plain.grads
        assert_same_tensors({key: logs[key] for key in own}, own)
        assert torch.equal(steps.ours.rng_state, steps.plain.rng_state)
        added = {key.split('.')[-1] for key in logs.keys() - own.keys()}
        assert added == {'loss_kd', *DIAGNOSTICS}
        changed = [grads[key] for key in grads if not _same(grads[key], plain_grads[key])]
        # A level of a dense head may have no object to learn from.
        layers = case.head.classifiers(steps.ours.detector)
        trained = [x.weight.grad for x in layers if x.weight.grad.any()]
        assert trained
        assert all(any(grad is other for other in changed) for grad in trained)

    def test_predicts_as_the_plain_one_without_any_teacher_file(
        self, case: Case, detector: nn.Module, tmp_path: Path
    ) -> None:
        cfg = distilled_config(
            case,
            tmp_path / 'no_teacher.pth',
            teacher=dict(
                config=str(tmp_path / 'no_config.py'),
                calibrator=dict(type='TemperatureScaling', temperature=str(tmp_path / 'no.json')),
            ),
        )
        ours, theirs = helpers.build(cfg), plain(case, like=detector)
        ours.load_state_dict(detector.state_dict())
        found = 0
        for a, b in zip(*(each.eval().test_step(case.batch()) for each in (ours, theirs))):
            assert_same_tensors(dict(a.pred_instances.items()), dict(b.pred_instances.items()))
            found += len(a.pred_instances)
        assert found > 0

    # One forward of each network

    def test_each_network_runs_once_and_the_teacher_only_what_is_asked(
        self, pair: Pair, steps: Steps
    ) -> None:
        case, frozen = pair.case, pair.detector.teacher.network.detector
        predicting, asked = copy.deepcopy(pair.teacher), steps.teacher_calls
        assert steps.ours.calls == steps.plain.calls
        assert steps.ours.calls['backbone'] == asked['backbone'] == 1
        with count_calls(predicting) as predicted:
            predicting.test_step(case.batch())

        kept = {
            name
            for name, module in frozen.named_modules()
            if any(True for _ in module.parameters(recurse=False))
            and not re.search(case.head.not_counted, name)
        }
        assert not [name for name in asked if re.search(case.head.not_asked, name)]
        if 'stages' not in case.teacher_options:
            assert all(asked[name] for name in kept)
            boxes_too = 0  # RTMDet-Ins computes classes and boxes by the same convolutions
            if case.name == 'RTMDet-Ins':
                boxes_too = sum(asked[name] for name in kept if '.cls_convs.' in name)
            count = sum(asked[name] for name in kept) + boxes_too
            assert count == sum(predicted[name] for name in kept)

    def test_nothing_is_left_behind(self, steps: Steps) -> None:
        detector = copy.deepcopy(steps.ours.detector)
        with pytest.raises((TypeError, AttributeError)):
            detector.loss(torch.zeros(2, 3, 64, 64), None)
        student = steps.plain.detector
        for (name, ours), theirs in zip(detector.named_modules(), student.modules()):
            assert not ours._forward_hooks
            assert not ours._forward_pre_hooks
            assert not name or vars(ours).keys() == vars(theirs).keys()

    # The loss

    def test_loss_is_that_of_logits_captured_on_plain_detectors(
        self, pair: Pair, steps: Steps
    ) -> None:
        losses = distillation_losses(steps.ours.logs)

        seen = captured(pair.case, pair.detector, copy.deepcopy(pair.teacher))
        loss = pair.detector.distillation['loss_kd']
        expected = {
            f'{each.name}loss_kd': float(
                each.factor * reference_loss(loss, each, each.teacher.double() / 1.5)
            )
            for each in seen
        }
        assert all(len(each.student) > 16 for each in seen)
        assert all(value > 1e-3 for value in expected.values())
        assert {name: value.item() for name, value in losses.items()} == pytest.approx(
            expected, rel=pair.case.head.tolerance
        )

    def test_a_teacher_of_more_classes_in_another_order(
        self, case: Case, detector: nn.Module, tmp_path: Path
    ) -> None:
        classes = ('bird', 'horse', 'cat', 'dog')
        cfg = copy.deepcopy(case.teacher)
        set_num_classes(cfg, len(helpers.CLASSES), len(classes))
        teacher = make_teacher(case, cfg, tmp_path / 'teacher.pth', classes)
        ours = helpers.build(
            distilled_config(
                case,
                tmp_path / 'teacher.pth',
                teacher=dict(config=dict(model=cfg.to_dict())),
            )
        ).train()
        ours.load_state_dict(detector.state_dict())
        ours.dataset_meta = dict(classes=helpers.CLASSES)
        torch.manual_seed(5)
        losses = distillation_losses(helpers.loss(ours, case.batch()))

        expected = {}
        for each in captured(case, detector, teacher):
            logits = each.teacher.double() / 1.5
            mapped = logits[:, [2, 3, 0]]
            if logits.shape[1] == len(classes) + 1:
                others = logits[:, [1, 4]].logsumexp(dim=1, keepdim=True)
                mapped = torch.cat([mapped, others], dim=1)
            value = reference_loss(ours.distillation['loss_kd'], each, mapped)
            expected[f'{each.name}loss_kd'] = float(each.factor * value)
        assert {name: value.item() for name, value in losses.items()} == pytest.approx(
            expected, rel=case.head.tolerance
        )

    def test_no_loss_has_anything_to_teach_a_student_that_is_its_teacher(
        self, case: Case, detector: nn.Module, tmp_path: Path
    ) -> None:
        save(detector, tmp_path / 'teacher.pth', helpers.CLASSES)
        cfg = distilled_config(case, tmp_path / 'teacher.pth')
        cfg.teacher = dict(
            config=dict(model=case.student.to_dict()),
            checkpoint=str(tmp_path / 'teacher.pth'),
            calibrator=dict(type='TemperatureScaling', temperature=1.0),
        )
        activation = LOSSES[case.distillation['type']].activation
        fitting = [name for name, cls in LOSSES.items() if cls.activation == activation]
        cfg.distillation = {name: dict(type=name) for name in fitting}
        ours = helpers.build(cfg).train()
        ours.load_state_dict(detector.state_dict())
        freeze_batchnorm(ours)  # as the teacher's
        losses = helpers.loss(ours, case.batch())
        own = sum(
            torch.as_tensor(value[0] if isinstance(value, list) else value).sum()
            for name, value in losses.items()
            if 'loss' in name and 'loss_kd' not in name
        )
        found = distillation_losses(losses)
        assert {name.split('loss_kd_')[1] for name in found} == set(fitting)
        for name, value in found.items():
            assert value.item() == pytest.approx(0, abs=1e-6), name
            assert gradient_norm(ours, value) < 1e-3 * gradient_norm(ours, own), name

    def test_images_without_objects(self, case: Case, detector: nn.Module) -> None:
        take_away = case.head.take_samples_away
        if take_away is not None:
            take_away(detector)
        losses = distillation_losses(helpers.loss(detector, case.batch(num_boxes=0)))
        assert losses
        total = sum(losses.values())
        total.backward()
        assert total.isfinite()
        if take_away is not None:
            assert total == 0
            for layer in case.head.classifiers(detector)[: len(losses)]:
                assert layer.weight.grad.abs().sum() == 0

    def test_a_few_steps_lower_the_loss(self, case: Case, detector: nn.Module) -> None:
        before = copy.deepcopy(detector.teacher.network.state_dict())
        case.sharpen(detector, seed=9, in_training=True)
        optimizer = case.head.optimizer(detector.parameters())
        values = []
        for _ in range(8):
            torch.manual_seed(5)
            total = sum(distillation_losses(helpers.loss(detector, case.batch())).values())
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), 1)
            optimizer.step()
            values.append(total.item())
        assert min(values[-2:]) < 0.9 * values[0], values
        assert_same_tensors(before, detector.teacher.network.state_dict())


def set_num_classes(cfg: Any, old: int, new: int) -> None:
    """Changes the number of classes everywhere in a model's config."""
    if isinstance(cfg, list):
        for item in cfg:
            set_num_classes(item, old, new)
    elif isinstance(cfg, dict):
        for key, value in cfg.items():
            if key in ('num_classes', 'num_things_classes') and value == old:
                cfg[key] = new
            else:
                set_num_classes(value, old, new)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
