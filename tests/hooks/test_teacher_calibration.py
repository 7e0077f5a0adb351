from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn

from calkd_det.calibration.reliability import reliability
from calkd_det.detectors.diagnosis import diagnose
from calkd_det.errors import ConfigError
from calkd_det.hooks import TeacherCalibrationHook, teacher_calibration
from calkd_det.knowledge import HeadAnswer, HeadSamples


class Runner(SimpleNamespace):
    """The parts of mmengine's Runner that the hook uses."""

    def __init__(self, model: nn.Module, epoch_length: int) -> None:
        super().__init__(
            model=model,
            iter=0,
            train_dataloader=range(epoch_length),
            message_hub=MessageHub.get_instance('teacher_calibration'),
            logger=MMLogger.get_instance('teacher_calibration'),
        )


def distilled(teacher_config: ConfigDict, path: Path) -> nn.Module:
    detector = helpers.build(helpers.distilled_config(teacher_config, path))
    detector.init_weights()
    return detector.train()


def test_logs_the_ece_of_all_samples_so_far(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    detector = distilled(teacher_config, teacher[1])
    hook = HOOKS.build(dict(type='TeacherCalibrationHook', interval=2, num_bins=10))
    runner = Runner(detector, epoch_length=5)
    hook.before_train(runner)
    recorded: list[tuple[Tensor, Tensor]] = []

    def record(network: nn.Module, args: tuple, answers: list[HeadAnswer]) -> None:
        recorded.append((answers[0].logits.softmax(1), args[1][0].labels))

    detector.teacher.network.register_forward_hook(record)
    logged = []
    for step in range(5):
        runner.iter = step
        torch.manual_seed(step)
        helpers.loss(detector, helpers.batch(seed=step))
        hook.after_train_iter(runner, step)
        buffer = runner.message_hub.log_scalars.get('train/teacher_ece')
        logged.append(0 if buffer is None else len(buffer._log_history))
    assert logged == [0, 1, 1, 2, 3]  # every second step, and the last of the epoch
    probs, labels = (torch.cat(values) for values in zip(*recorded))
    foreground = labels < len(helpers.CLASSES)
    for prefix, rows in (('ece', foreground), ('ece_all', slice(None))):
        expected = reliability(probs[rows], labels[rows], n_bins=10)
        for name, value in (
            (prefix, expected.ece),
            (f'{prefix}_over', expected.ece_over),
            (f'{prefix}_under', expected.ece_under),
        ):
            logged_value = runner.message_hub.get_scalar(f'train/teacher_{name}').current()
            assert logged_value == pytest.approx(value, abs=1e-6)
        assert expected.ece > 0

    hook.after_train(runner)
    helpers.loss(detector, helpers.batch())
    assert not any(hook._unbinned.values())


def test_logs_whether_the_teacher_is_over_or_under_confident(
    teacher_config: ConfigDict,
    teacher: tuple[nn.Module, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = Runner(distilled(teacher_config, teacher[1]), epoch_length=1)
    logged: list[str] = []
    monkeypatch.setattr(runner.logger, 'info', logged.append)
    samples = HeadSamples(
        logits=torch.zeros(4, 2),
        labels=torch.tensor([0, 0, 1, 1]),
        weights=torch.ones(4),
        locations=torch.zeros(4, 5),
        activation='sigmoid',
    )
    for scale, side in ((5.0, 'over-confident'), (-0.5, 'under-confident')):
        hook = TeacherCalibrationHook()
        hook.before_train(runner)
        answers = [HeadAnswer(torch.tensor([[scale, -9.0]]).expand(4, 2))]
        hook._record_samples(runner.model.teacher.network, (None, [samples]), answers)
        hook.after_train_iter(runner, 0)
        foreground, both = logged[-2:]
        assert f'{side} on 4 foreground samples of the training' in foreground
        assert f'{side} on 4 samples, foreground and background, of the training' in both
        assert 'accuracy 0.5000' in foreground


def test_nan_logits_and_empty_batches_are_left_out(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    runner = Runner(distilled(teacher_config, teacher[1]), epoch_length=1)
    hook = TeacherCalibrationHook()
    hook.before_train(runner)
    for logits in (torch.full((3, 2), torch.nan), torch.zeros(0, 2)):
        count = len(logits)
        samples = HeadSamples(
            logits, torch.zeros(count).long(), torch.ones(count), torch.zeros(count, 5), 'softmax'
        )
        hook._record_samples(runner.model.teacher.network, (None, [samples]), [HeadAnswer(logits)])
        hook.after_train_iter(runner, 0)
    assert all(total.sums.sum() == 0 for total in hook.totals.values())


def test_a_plain_detector_is_refused_and_one_without_teacher_is_not() -> None:
    with pytest.raises(ConfigError, match=r'needs a distilled detector, but model\.type is Base'):
        TeacherCalibrationHook().before_train(Runner(BaseModule(), 1))
    off = helpers.build(helpers.detector_config('CalKDFasterRCNN'))
    hook, runner = TeacherCalibrationHook(), Runner(off, 1)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    hook.after_train(runner)


@pytest.mark.parametrize('argument', ['interval', 'num_bins'])
@pytest.mark.parametrize('value', [0, -1, 1.5, True, '50'])
def test_bad_arguments_are_refused(argument: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f'{argument} must be an integer > 0'):
        TeacherCalibrationHook(**{argument: value})


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_samples_of_zero_weight_are_left_out_and_a_dense_head_is_strided(activation: str) -> None:
    hook = TeacherCalibrationHook()
    num_samples = teacher_calibration.MAX_SAMPLES * 3 - 5
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_samples, 4, generator=generator)
    weights = torch.ones(num_samples)
    weights[::2] = 0
    samples = HeadSamples(
        logits=logits,
        labels=torch.randint(0, 4, (num_samples,), generator=generator),
        weights=weights,
        locations=torch.zeros(num_samples, 5),
        activation=activation,
    )
    for _ in range(3):
        hook._record_samples(None, (None, [samples]), [HeadAnswer(logits)])
    found = hook._bin_samples()
    overall = found['teacher_ece_all']
    assert overall.num_samples == int((weights > 0).sum())  # three steps read each sample once
    probs = logits.softmax(1) if activation == 'softmax' else logits.sigmoid()
    keep = weights > 0
    expected = reliability(probs[keep], samples.labels[keep], n_bins=15, activation=activation)
    assert overall.ece == pytest.approx(expected.ece, abs=1e-6)
    # Of the foreground, each step reads every one.
    assert found['teacher_ece'].num_samples == 3 * len(samples.foreground())


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_counts_the_samples_of_the_other_figures_on_the_teacher(activation: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(300, 4, generator=generator) - 2
    num_classes = 4 - (activation == 'softmax')
    samples = HeadSamples(
        logits=logits,
        labels=torch.randint(0, num_classes + 1, (300,), generator=generator),
        weights=torch.randint(0, 2, (300,), generator=generator).float(),
        locations=None,
        activation=activation,
    )
    hook = TeacherCalibrationHook()
    hook._record_samples(None, (None, [samples]), [HeadAnswer(logits)])
    found = hook._bin_samples()
    figures = diagnose(samples, logits)
    foreground = found['teacher_ece']
    assert foreground.num_samples == len(samples.foreground()) > 50
    assert foreground.mean_accuracy == pytest.approx(float(figures['teacher_accuracy']), abs=1e-6)
    assert foreground.mean_confidence == pytest.approx(
        float(figures['teacher_confidence']), abs=1e-6
    )
    both = found['teacher_ece_all']
    assert both.num_samples == int(samples.weights.sum())
    background = (samples.labels == num_classes) & (samples.weights > 0)
    right = background & (logits.argmax(dim=1) == num_classes)  # never under sigmoid
    hits = foreground.num_samples * foreground.mean_accuracy + float(right.sum())
    assert both.num_samples * both.mean_accuracy == pytest.approx(hits)
