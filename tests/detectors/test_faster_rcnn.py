"""A distilled Faster R-CNN beyond what every detector promises: losses, the teacher, the device."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config, ConfigDict
from mmengine.model import ExponentialMovingAverage
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from calkd_det.detectors import CalKDFasterRCNN

Teacher = tuple[nn.Module, Path]


@pytest.fixture
def distilled(teacher_config: ConfigDict, teacher: Teacher) -> CalKDFasterRCNN:
    """A distilled detector whose teacher is built."""
    detector = helpers.build(helpers.distilled_config(teacher_config, teacher[1]))
    detector.init_weights()
    return detector.train()


def plain(like: nn.Module | None = None) -> nn.Module:
    """The plain student in train mode, with the weights of another one."""
    detector = helpers.build(helpers.detector_config())
    if like is not None:
        detector.load_state_dict(like.state_dict())
    else:
        detector.init_weights()
    return detector.train()


def one_step(detector: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Losses, gradients and the state of the random number generator after a step."""
    torch.manual_seed(5)
    losses = helpers.loss(detector, helpers.batch())
    total, logs = detector.parse_losses(losses)
    total.backward()
    grads = {name: p.grad for name, p in detector.named_parameters()}
    return logs, grads, torch.get_rng_state()


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key] is None) == (b[key] is None), key
        assert a[key] is None or torch.equal(a[key], b[key]), key


# The student stays the plain detector


@pytest.mark.parametrize('change', ['no distillation', 'no teacher'])
def test_switched_off_is_the_plain_step_bit_for_bit(
    change: str, teacher_config: ConfigDict, tmp_path: Path
) -> None:
    cfg = helpers.distilled_config(teacher_config, tmp_path / 'nowhere.pth')
    cfg.distillation = None
    if change == 'no teacher':
        cfg.teacher = None
    off = helpers.build(cfg)
    off.init_weights()
    reference = plain(like=off)
    logs, grads, state = one_step(off.train())
    plain_logs, plain_grads, plain_state = one_step(reference)
    assert_same_tensors(logs, plain_logs)
    assert_same_tensors(grads, plain_grads)
    assert torch.equal(state, plain_state)


# The loss


@pytest.mark.parametrize('temperature', [1.0, 1.5, 3.0])
@pytest.mark.parametrize('tau', [1.0, 2.0, 4.0])
def test_loss_is_that_of_logits_captured_on_plain_detectors(
    temperature: float, tau: float, teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = helpers.build(
        helpers.distilled_config(
            teacher_config,
            teacher[1],
            teacher=dict(calibrator=dict(type='TemperatureScaling', temperature=temperature)),
            distillation=dict(tau=tau),
        )
    )
    detector.init_weights()
    helpers.sharpen_classifier(detector, seed=9)
    torch.manual_seed(5)
    loss_kd = helpers.loss(detector.train(), helpers.batch())['loss_kd']

    z_s, z_t, _ = captured_logits(plain(like=detector), teacher[0])
    log_s = log_softmax(z_s / tau, axis=1)
    log_t = log_softmax(z_t / (temperature * tau), axis=1)
    expected = tau**2 * (np.exp(log_t) * (log_t - log_s)).sum(axis=1).mean()
    assert len(z_s) > 32
    assert loss_kd.dtype == torch.float32
    assert loss_kd.item() == pytest.approx(expected, rel=1e-5)


def captured_logits(
    student: nn.Module, teacher: nn.Module
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What plain detectors' own modules see: logits of both, in float64, and the labels."""
    seen: dict[str, Tensor] = {}
    head = student.roi_head
    head.bbox_roi_extractor.register_forward_hook(lambda m, a, o: seen.update(rois=a[1]))
    head.bbox_head.fc_cls.register_forward_hook(lambda m, a, o: seen.update(student=o))
    head.bbox_head.loss_cls.register_forward_hook(lambda m, a, o: seen.update(labels=a[1]))
    torch.manual_seed(5)
    helpers.loss(student, helpers.batch())

    answering = teacher.roi_head
    answering.bbox_head.fc_cls.register_forward_hook(lambda m, a, o: seen.update(teacher=o))
    with torch.no_grad():
        data = teacher.data_preprocessor(copy.deepcopy(helpers.batch()), True)
        feats = teacher.extract_feat(data['inputs'])
        answering.bbox_head(answering.bbox_roi_extractor(feats[:4], seen['rois']))
    return (
        seen['student'].detach().double().numpy(),
        seen['teacher'].double().numpy(),
        seen['labels'].numpy(),
    )


def test_diagnostics(distilled: CalKDFasterRCNN, teacher: Teacher) -> None:
    helpers.sharpen_classifier(distilled, seed=9)
    torch.manual_seed(5)
    logs = helpers.loss(distilled, helpers.batch())
    z_s, z_t, labels = captured_logits(plain(like=distilled), teacher[0])
    foreground = labels < len(helpers.CLASSES)
    assert 0 < foreground.sum() < len(labels)
    p_t = np.exp(log_softmax(z_t / 1.5, axis=1))[foreground]
    predicted = p_t.argmax(1)
    assert logs['teacher_confidence'].item() == pytest.approx(p_t.max(1).mean(), rel=1e-5)
    assert logs['teacher_accuracy'].item() == pytest.approx(
        (predicted == labels[foreground]).mean()
    )
    agreement = (predicted == z_s[foreground].argmax(1)).mean()
    assert logs['teacher_agreement'].item() == pytest.approx(agreement)


def test_several_losses(teacher_config: ConfigDict, teacher: Teacher) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = dict(
        sharp=dict(type='KDLoss', tau=1.0, loss_weight=0.5),
        soft=dict(type='KDLoss', tau=4.0),
        off=dict(type='KDLoss', loss_weight=0.0),
    )
    detector = helpers.build(cfg)
    detector.init_weights()
    torch.manual_seed(5)
    losses = helpers.loss(detector.train(), helpers.batch())
    assert {key for key in losses if 'kd' in key} == {'loss_kd_sharp', 'loss_kd_soft'}
    cfg.distillation = dict(type='KDLoss', tau=1.0)
    single = helpers.build(cfg)
    single.init_weights()
    single.load_state_dict(detector.state_dict())
    torch.manual_seed(5)
    loss_kd = helpers.loss(single.train(), helpers.batch())['loss_kd']
    assert torch.allclose(losses['loss_kd_sharp'] * 2, loss_kd)


# No waiting for the device


class CountSyncs(TorchDispatchMode):
    """Counts operators that make a host wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ('_local_scalar_dense', 'nonzero', 'is_nonzero', '_to_copy', 'masked_select'):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def test_no_synchronisation_but_the_networks_own(
    distilled: CalKDFasterRCNN, teacher: Teacher
) -> None:
    def syncs(detector: nn.Module) -> Counter[str]:
        data = detector.data_preprocessor(copy.deepcopy(helpers.batch()), True)
        torch.manual_seed(5)
        with CountSyncs() as mode:
            detector(**data, mode='loss')
        return mode.count

    with CountSyncs() as extractor, torch.no_grad():
        feats = [torch.zeros(2, 16, 24 // 2**i, 24 // 2**i) for i in range(4)]
        teacher[0].roi_head.bbox_roi_extractor(feats, torch.rand(64, 5).cumsum(1) * 40)
    ours, theirs = syncs(distilled), syncs(plain(like=distilled))
    assert ours['_local_scalar_dense'] == theirs['_local_scalar_dense'] > 0
    assert ours['nonzero'] == theirs['nonzero'] + extractor.count['nonzero']


# The teacher is no part of the student


def test_teacher_is_frozen_folded_and_in_eval_mode(distilled: CalKDFasterRCNN) -> None:
    network = distilled.train().teacher.network
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    mine = {id(p) for p in distilled.parameters()}
    assert not mine & {id(p) for p in network.parameters()}


def test_deepcopy_shares_the_teacher(distilled: CalKDFasterRCNN) -> None:
    copied = copy.deepcopy(distilled)
    assert copied.teacher is distilled.teacher
    averaged = ExponentialMovingAverage(distilled)
    assert averaged.module.teacher is distilled.teacher
    averaged.update_parameters(distilled)
    assert torch.equal(one_step(copied)[0]['loss_kd'], one_step(distilled)[0]['loss_kd'])


def test_pickle_drops_the_network(distilled: CalKDFasterRCNN) -> None:
    loaded = pickle.loads(pickle.dumps(distilled))
    assert distilled.teacher.network is not None
    assert loaded.teacher.network is None
    assert one_step(loaded)[0]['loss_kd'] > 0


def test_a_loop_that_never_initialises_gets_the_teacher_at_its_first_loss(
    teacher_config: ConfigDict, teacher: Teacher
) -> None:
    detector = helpers.build(helpers.distilled_config(teacher_config, teacher[1])).train()
    assert detector.teacher.network is None
    assert helpers.loss(detector, helpers.batch())['loss_kd'] > 0


# No teacher file needed but for training


def test_builds_tests_and_infers_without_any_teacher_file(tmp_path: Path) -> None:
    model = helpers.detector_config(
        'CalKDFasterRCNN',
        teacher=dict(
            config=str(tmp_path / 'no_config.py'),
            checkpoint=str(tmp_path / 'no_teacher.pth'),
            calibrator=dict(
                type='TemperatureScaling', temperature=str(tmp_path / 'no_temperature.json')
            ),
        ),
        distillation=dict(type='KDLoss'),
    )
    detector = helpers.build(model)
    assert len(detector.eval().test_step(helpers.batch())) == 2
    checkpoint = tmp_path / 'student.pth'
    meta = dict(dataset_meta=dict(classes=helpers.CLASSES))
    torch.save(dict(state_dict=detector.state_dict(), meta=meta), checkpoint)
    pipeline = [
        dict(type='LoadImageFromNDArray'),
        dict(type='Resize', scale=(64, 64)),
        dict(type='PackDetInputs', meta_keys=('img_shape', 'ori_shape', 'scale_factor')),
    ]
    cfg = Config(
        dict(
            model=model.to_dict(),
            default_scope='mmdet',
            test_dataloader=dict(dataset=dict(type='CocoDataset', pipeline=pipeline)),
        )
    )
    inferring = init_detector(cfg, str(checkpoint), device='cpu', palette='random')
    result = inference_detector(inferring, np.zeros((64, 64, 3), np.uint8))
    assert 'pred_instances' in result
