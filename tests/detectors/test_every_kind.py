"""What every detector promises when its teacher hands on all kinds of knowledge."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from mmengine.config import ConfigDict
from pairs import (
    Pair,
    Steps,
    assert_same_tensors,
    distillation_losses,
    distilled_config,
    freeze_batchnorm,
    gradient_norm,
    one_step,
    plain,
    save,
    take_steps,
)
from torch import Tensor, nn

from calkd_det.taps import QueryTap, find_tap
from calkd_det.teachers import network

FEATURES = {'pkd': dict(type='PKDLoss', num_levels=None), 'cwd': dict(type='CWDLoss')}


def losses_of(pair: Pair) -> dict[str, dict[str, Any]]:
    """Losses of each kind that the case's student has."""
    losses = {'cls': dict(pair.case.distillation), **FEATURES}
    if 'box' in find_tap(pair.detector, 'model').kinds(pair.detector):
        losses['bbox'] = dict(type='BoxKDLoss')
    return losses


def config(pair: Pair, checkpoint: Path | None = None, **losses: Any) -> ConfigDict:
    """The case's student with losses of each kind, or with the given ones."""
    cfg = distilled_config(pair.case, checkpoint or pair.checkpoint)
    cfg.distillation = losses or losses_of(pair)
    return cfg


def built(pair: Pair, cfg: ConfigDict, like: nn.Module | None = None) -> nn.Module:
    """The distilled student in train mode, with the weights of another, by default the pair's."""
    detector = helpers.build(cfg)
    detector.load_state_dict((like or pair.detector).state_dict())
    return detector.train()


@pytest.fixture(scope='module')
def taught(pair: Pair) -> nn.Module:
    """The case's student with losses of each kind and its teacher at hand, for tests to copy."""
    detector = helpers.build(config(pair))
    detector.init_weights()
    detector.load_state_dict(pair.detector.state_dict())
    return detector.train()


@pytest.fixture(scope='module')
def steps(pair: Pair, taught: nn.Module) -> Steps:
    """A step with losses of each kind, and the plain student's."""
    return take_steps(pair.case, taught)


class TestEveryKind:
    def test_the_student_stays_the_plain_one(self, pair: Pair, steps: Steps) -> None:
        """Modules, losses of its own, sampling, and one loss more a kind and classifier."""
        ours, theirs = steps.ours, steps.plain
        assert list(ours.detector.state_dict()) == list(theirs.detector.state_dict())
        for name in theirs.logs.keys() - {'loss'}:
            assert torch.equal(torch.as_tensor(ours.logs[name]), torch.as_tensor(theirs.logs[name]))
        assert torch.equal(ours.rng_state, theirs.rng_state)
        names = {key.split('.')[-1] for key in ours.logs if 'loss_kd' in key}
        assert names == {f'loss_kd_{name}' for name in losses_of(pair)}
        assert ours.grads.keys() == theirs.grads.keys()
        assert all(torch.isfinite(grad).all() for grad in ours.grads.values() if grad is not None)

    def test_weight_0_of_all_is_the_plain_step_bit_for_bit(
        self, pair: Pair, steps: Steps, tmp_path: Path
    ) -> None:
        losses = {name: {**loss, 'loss_weight': 0} for name, loss in losses_of(pair).items()}
        detector = helpers.build(config(pair, tmp_path / 'nowhere.pth', **losses))
        detector.init_weights()  # without a teacher
        detector.load_state_dict(pair.detector.state_dict())
        assert_same_tensors(one_step(detector.train(), pair.case).grads, steps.plain.grads)

    def test_each_network_runs_once(self, pair: Pair, steps: Steps) -> None:
        # Modules without parameters, such as GFL's integral, decode the student's boxes again.
        networks = {
            name
            for name, module in steps.plain.detector.named_modules()
            if any(True for _ in module.parameters(recurse=False))
        }
        assert {name: steps.ours.calls[name] for name in networks} == {
            name: steps.plain.calls[name] for name in networks
        }
        assert all(steps.teacher_calls[part] == 1 for part in feature_parts(pair))

    def test_a_detector_that_teaches_itself_has_no_loss_of_any_kind(
        self, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Folding rounds, and a GIoU has a slope of its own next to its best value.
        monkeypatch.setattr(network, 'fold_batchnorm', lambda detector: detector)
        # So does torch's attention of eval mode, and an L1 distance has one, too.
        helpers.switch_off_fast_attention(monkeypatch)
        itself = copy.deepcopy(pair.detector)
        pair.case.spread_boxes(itself, seed=4)
        save(itself, tmp_path / 'teacher.pth', helpers.CLASSES)
        cfg = config(pair, tmp_path / 'teacher.pth')
        cfg.teacher = dict(
            config=dict(model=pair.case.student.to_dict()),
            checkpoint=str(tmp_path / 'teacher.pth'),
            calibrator=dict(type='TemperatureScaling', temperature=1.0),
        )
        ours = built(pair, cfg, like=itself)
        freeze_batchnorm(ours)  # as the teacher's
        losses = helpers.loss(ours, pair.case.batch())
        own = own_loss(losses)
        found = distillation_losses(losses)
        assert found
        for name, value in found.items():
            # A divergence summed over all places of a map rounds to about this.
            assert value.item() == pytest.approx(0, abs=1e-5), name
            # A linear layer rounds differently without gradients, and L1 has a slope next to zero.
            if name.endswith('bbox') and isinstance(find_tap(ours, 'model'), QueryTap):
                continue
            assert gradient_norm(ours, value) < 2e-3 * gradient_norm(ours, own), name

    def test_images_without_objects_are_finite(self, pair: Pair, taught: nn.Module) -> None:
        detector = copy.deepcopy(taught)
        take_away = pair.case.head.take_samples_away
        if take_away is not None:
            take_away(detector)
        total = sum(
            distillation_losses(helpers.loss(detector, pair.case.batch(num_boxes=0))).values()
        )
        total.backward()
        assert total.isfinite()
        assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)

    def test_features_alone_ask_no_head(self, pair: Pair) -> None:
        detector = built(pair, config(pair, **FEATURES))
        logs = helpers.loss(detector, pair.case.batch())
        kept = dict(detector.teacher.network.detector.named_children())
        with_weights = {n for n, child in kept.items() if any(True for _ in child.parameters())}
        assert with_weights == feature_parts(pair)
        assert distillation_losses(logs).keys() == {'loss_kd_pkd', 'loss_kd_cwd'}
        assert not [name for name in logs if 'teacher' in name]

    def test_predicts_without_any_teacher_file(self, pair: Pair, tmp_path: Path) -> None:
        cfg = config(pair, tmp_path / 'nowhere.pth')
        cfg.teacher.config = str(tmp_path / 'nowhere.py')
        ours = built(pair, cfg)
        theirs = plain(pair.case, like=ours)
        for a, b in zip(*(each.eval().test_step(pair.case.batch()) for each in (ours, theirs))):
            assert_same_tensors(dict(a.pred_instances.items()), dict(b.pred_instances.items()))


def feature_parts(pair: Pair) -> set[str]:
    """The parts that compute features; mask transformers have no neck."""
    return {'backbone', 'neck'} if pair.detector.with_neck else {'backbone'}


def own_loss(losses: dict[str, Any]) -> Tensor:
    """The sum of the plain detector's losses."""
    return sum(
        torch.as_tensor(value[0] if isinstance(value, list) else value).sum()
        for name, value in losses.items()
        if 'loss' in name and 'loss_kd' not in name
    )
