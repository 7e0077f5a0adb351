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
from calkd_det.errors import ConfigError
from calkd_det.hooks import TeacherCalibrationHook, teacher_calibration
from calkd_det.taps import ClassifierSamples


class Runner(SimpleNamespace):
    """As much of mmengine's as the hook uses."""

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
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(network: nn.Module, args: tuple, answers: list[Tensor]) -> None:
        seen.append((answers[0].softmax(1), args[1][0].labels))

    detector.teacher.network.register_forward_hook(keep)
    logged = []
    for step in range(5):
        runner.iter = step
        torch.manual_seed(step)
        helpers.loss(detector, helpers.batch(seed=step))
        hook.after_train_iter(runner, step)
        buffer = runner.message_hub.log_scalars.get('train/teacher_ece')
        logged.append(0 if buffer is None else len(buffer._log_history))
    assert logged == [0, 1, 1, 2, 3]  # every second step, and the last of the epoch
    probs, labels = (torch.cat(values) for values in zip(*seen))
    expected = reliability(probs, labels, n_bins=10)
    for name, value in (
        ('ece', expected.ece),
        ('ece_over', expected.ece_over),
        ('ece_under', expected.ece_under),
    ):
        logged_value = runner.message_hub.get_scalar(f'train/teacher_{name}').current()
        assert logged_value == pytest.approx(value, abs=1e-6)
    assert expected.ece > 0

    hook.after_train(runner)
    helpers.loss(detector, helpers.batch())
    assert not hook._seen


def test_says_on_which_side_the_teacher_is(
    teacher_config: ConfigDict,
    teacher: tuple[nn.Module, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = Runner(distilled(teacher_config, teacher[1]), epoch_length=1)
    said: list[str] = []
    monkeypatch.setattr(runner.logger, 'info', said.append)
    samples = ClassifierSamples(
        logits=torch.zeros(4, 2),
        labels=torch.tensor([0, 0, 0, 1]),
        weights=torch.ones(4),
        locations=torch.zeros(4, 5),
        activation='softmax',
    )
    for scale, side in ((5.0, 'over-confident'), (0.1, 'under-confident')):
        hook = TeacherCalibrationHook()
        hook.before_train(runner)
        answers = [torch.tensor([[scale, 0.0]]).expand(4, 2)]
        hook._see(runner.model.teacher.network, (None, [samples]), answers)
        hook.after_train_iter(runner, 0)
        assert side in said[-1]
        assert '4 training samples' in said[-1]
        assert 'accuracy 0.7500' in said[-1]


def test_a_diverged_run_and_a_batch_without_samples_do_not_stop_it(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    runner = Runner(distilled(teacher_config, teacher[1]), epoch_length=1)
    hook = TeacherCalibrationHook()
    hook.before_train(runner)
    for logits in (torch.full((3, 2), torch.nan), torch.zeros(0, 2)):
        count = len(logits)
        samples = ClassifierSamples(
            logits, torch.zeros(count).long(), torch.ones(count), torch.zeros(count, 5), 'softmax'
        )
        hook._see(runner.model.teacher.network, (None, [samples]), [logits])
        hook.after_train_iter(runner, 0)
    assert hook.total.sums.sum() == 0


def test_a_plain_detector_is_refused_and_a_switched_off_one_is_not() -> None:
    with pytest.raises(ConfigError, match=r'needs a distilled detector, but model\.type is Base'):
        TeacherCalibrationHook().before_train(Runner(BaseModule(), 1))
    off = helpers.build(helpers.detector_config('CalKDFasterRCNN'))
    hook, runner = TeacherCalibrationHook(), Runner(off, 1)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    hook.after_train(runner)


@pytest.mark.parametrize('argument', ['interval', 'num_bins'])
@pytest.mark.parametrize('value', [0, -1, 1.5, True, '50'])
def test_bad_arguments(argument: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f'{argument} must be an integer > 0'):
        TeacherCalibrationHook(**{argument: value})


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_samples_without_weight_and_most_of_a_dense_heads_are_left_out(activation: str) -> None:
    hook = TeacherCalibrationHook()
    number = teacher_calibration.MAX_SAMPLES * 3 - 5
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(number, 4, generator=generator)
    weights = torch.ones(number)
    weights[::2] = 0
    samples = ClassifierSamples(
        logits=logits,
        labels=torch.randint(0, 4, (number,), generator=generator),
        weights=weights,
        locations=torch.zeros(number, 5),
        activation=activation,
    )
    for _ in range(3):
        hook._see(None, (None, [samples]), [logits])
    overall = hook._update()
    assert overall.num_samples == int((weights > 0).sum())  # three steps have seen each once
    probs = logits.softmax(1) if activation == 'softmax' else logits.sigmoid()
    keep = weights > 0
    expected = reliability(probs[keep], samples.labels[keep], n_bins=15, activation=activation)
    assert overall.ece == pytest.approx(expected.ece, abs=1e-6)
