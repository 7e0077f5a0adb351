"""The RoIs that are left where the teacher is not asked about all of them."""

from __future__ import annotations

from pathlib import Path

import helpers
import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from calkd_det.detectors.roi_fraction import hardest_samples
from calkd_det.errors import ConfigError
from calkd_det.losses import kd_loss
from calkd_det.taps import ClassifierSamples


def make_samples(number: int = 40, foreground: int = 6, num_classes: int = 4) -> ClassifierSamples:
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((number,), num_classes)
    rows = torch.randperm(number, generator=generator)[:foreground]
    labels[rows] = torch.randint(0, num_classes, (foreground,), generator=generator)
    return ClassifierSamples(
        logits=(torch.randn(number, num_classes + 1, generator=generator) * 2).requires_grad_(),
        labels=labels,
        weights=torch.ones(number),
        locations=torch.arange(number * 5.0).view(number, 5),
        activation='softmax',
        name='s1',
        factor=0.5,
    )


def test_all_of_them_are_the_very_samples() -> None:
    samples = make_samples()
    assert hardest_samples(samples, 1.0) is samples


def test_foreground_and_hardest_background_in_their_order() -> None:
    samples = make_samples()
    kept = hardest_samples(samples, 0.4)
    rows = (kept.locations[:, 0] / 5).long()
    assert len(kept) == 16
    assert rows.tolist() == sorted(rows.tolist())
    background = samples.logits.log_softmax(1)[:, -1]
    foreground = (samples.labels < 4).nonzero().flatten().tolist()
    order = [row for row in background.argsort().tolist() if row not in foreground]
    assert set(rows.tolist()) == set(foreground) | set(order[:10])
    assert torch.equal(kept.labels, samples.labels[rows])
    assert torch.equal(kept.logits, samples.logits[rows])
    assert (kept.name, kept.factor) == ('s1', 0.5)


def test_more_foreground_than_is_kept() -> None:
    kept = hardest_samples(make_samples(foreground=30), 0.25)
    assert len(kept) == 10
    assert (kept.labels < 4).all()


def test_samples_without_weight_come_last_and_do_not_count() -> None:
    samples = make_samples()
    samples.weights[samples.labels < 4] = 0
    samples.weights[20:] = 0
    counted = int((samples.weights > 0).sum())
    kept = hardest_samples(samples, 0.25)
    assert (kept.weights > 0).all()
    assert kept.weights.sum() == pytest.approx(10 * 10 / counted)


@pytest.mark.parametrize('fraction', [0.1, 0.5, 0.9])
def test_the_loss_is_the_sum_over_those_kept_by_the_number_of_all(fraction: float) -> None:
    samples = make_samples()
    teacher = samples.logits.detach().flip(0)
    kept = hardest_samples(samples, fraction)
    rows = (kept.locations[:, 0] / 5).long()
    each = torch.stack(
        [kd_loss(samples.logits[i : i + 1], teacher[i : i + 1], torch.ones(1)) for i in rows]
    )
    loss = kd_loss(kept.logits, teacher[rows], kept.weights)
    torch.testing.assert_close(loss, each.sum() / 40)
    assert loss <= kd_loss(samples.logits, teacher, samples.weights)
    loss.backward()
    assert samples.logits.grad[rows].abs().sum() > 0
    others = torch.ones(40, dtype=torch.bool)
    others[rows] = False
    assert not samples.logits.grad[others].any()


def test_no_sample() -> None:
    samples = make_samples(number=0, foreground=0)
    assert len(hardest_samples(samples, 0.3)) == 0


def test_the_teacher_is_asked_about_no_others(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1], teacher=dict(roi_fraction=0.25))
    detector = helpers.build(cfg)
    detector.init_weights()
    seen = []
    head = detector.teacher.network.detector.roi_head.bbox_head
    head.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    losses = helpers.loss(detector, helpers.batch())
    assert seen == [16]  # of 2 x 32
    assert losses['loss_kd'] > 0


@pytest.mark.parametrize('value', [0, -0.5, 1.5, 'half', True])
def test_a_share_is_asked_for(teacher_config: ConfigDict, tmp_path: Path, value: object) -> None:
    cfg = helpers.distilled_config(
        teacher_config, tmp_path / 'x.pth', teacher=dict(roi_fraction=value)
    )
    with pytest.raises(ConfigError, match=r'teacher\.roi_fraction must be'):
        helpers.build(cfg)
