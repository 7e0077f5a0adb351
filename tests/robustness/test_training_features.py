"""What mmengine does to a model in training, done to a distilled one.

The reference is mmdet's plain detector with the loss written by hand, under the same conditions.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.detectors import FasterRCNN
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from small_runs import run
from torch import Tensor, nn

Teacher = tuple[nn.Module, Path]


@MODELS.register_module()
class FasterRCNNByHand(FasterRCNN):
    """Distils from a plain detector, with hooks on what mmdet's own modules see."""

    def __init__(self, teacher: list[nn.Module], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = teacher  # in a list: no submodule

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        head = self.roi_head
        hooks = [
            head.bbox_roi_extractor.register_forward_hook(lambda m, a, o: seen.update(rois=a[1])),
            head.bbox_head.register_forward_hook(lambda m, a, o: seen.update(student=o[0])),
        ]
        losses = super().loss(batch_inputs, batch_data_samples)
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            feats = self.hidden[0].extract_feat(batch_inputs)
            logits = self.hidden[0].roi_head._bbox_forward(feats, seen['rois'])['cls_score']
        losses['loss_kd'] = F.kl_div(
            F.log_softmax(seen['student'], 1), F.softmax(logits / 1.5, 1), reduction='batchmean'
        )
        return losses


class Watch(Hook):
    """Notes whether the teacher stays frozen, in eval mode and one."""

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        model = runner.model
        network = model.teacher.network
        assert model.training
        assert not any(module.training for module in network.modules())
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
        assert copy.deepcopy(model).teacher is model.teacher


@pytest.fixture
def distilled(teacher_config: ConfigDict, teacher: Teacher) -> ConfigDict:
    return helpers.distilled_config(teacher_config, teacher[1])


@pytest.fixture
def by_hand(teacher: Teacher) -> ConfigDict:
    return helpers.detector_config('FasterRCNNByHand', teacher=[teacher[0]])


def assert_close(a: nn.Module, b: nn.Module) -> None:
    expected = b.state_dict()
    assert list(a.state_dict()) == list(expected)
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5, msg=key)


FEATURES: dict[str, dict[str, Any]] = dict(
    nothing=dict(),
    ema=dict(),
    accumulation=dict(optim_wrapper=dict(accumulative_counts=2)),
    clipping=dict(optim_wrapper=dict(clip_grad=dict(max_norm=0.5))),
    with_cp=dict(),
    activation_checkpointing=dict(cfg=Config(dict(activation_checkpointing=['backbone.layer1']))),
    paramwise=dict(optim_wrapper=dict(paramwise_cfg=dict(norm_decay_mult=0, bias_lr_mult=2))),
)


@pytest.mark.parametrize('feature', FEATURES)
def test_weights_after_a_run_are_those_of_the_loss_by_hand(
    feature: str, distilled: ConfigDict, by_hand: ConfigDict, tmp_path: Path
) -> None:
    runs = {}
    for name, cfg in (('ours', distilled), ('hand', by_hand)):
        if feature == 'with_cp':
            cfg.backbone.with_cp = True
        hooks: list[Hook] = [Watch()] if name == 'ours' else []
        if feature == 'ema':
            hooks.append(EMAHook(momentum=0.2))
        options = copy.deepcopy(FEATURES[feature])
        runs[name] = run(cfg, tmp_path / name, hooks=hooks, **options)
    assert_close(runs['ours'].model, runs['hand'].model)
    if feature == 'ema':
        averaged = [
            next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
            for runner in runs.values()
        ]
        assert averaged[0].teacher is runs['ours'].model.teacher
        assert_close(*averaged)
        files = [torch.load(tmp_path / name / 'epoch_2.pth') for name in runs]
        for key in ('state_dict', 'ema_state_dict'):
            assert list(files[0][key]) == list(files[1][key])
    groups = [
        [
            {key: value for key, value in group.items() if key != 'params'}
            | {'n': len(group['params'])}
            for group in runner.optim_wrapper.optimizer.param_groups
        ]
        for runner in runs.values()
    ]
    assert groups[0] == groups[1]


@pytest.mark.skipif(helpers.TORCH_2_1, reason='torch 2.1 cannot compile the plain detector')
def test_a_run_that_compiles_is_the_run_that_does_not(
    distilled: ConfigDict, by_hand: ConfigDict, tmp_path: Path
) -> None:
    compiled = run(
        distilled,
        tmp_path / 'compiled',
        epochs=1,
        cfg=Config(dict(compile=dict(backend='eager'))),
    )
    assert_close(compiled.model, run(by_hand, tmp_path / 'hand', epochs=1).model)


def test_a_backbone_compiled_by_itself_stays_compiled(distilled: ConfigDict) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    detector = helpers.build(distilled).train()
    torch.manual_seed(5)
    expected = helpers.loss(detector, helpers.batch())['loss_kd']
    detector.backbone.compile(backend=backend)
    torch.manual_seed(5)
    torch.testing.assert_close(helpers.loss(detector, helpers.batch())['loss_kd'], expected)
    assert graphs


def initialised(cfg: ConfigDict) -> nn.Module:
    detector = helpers.build(cfg)
    detector.init_weights()
    return detector.train()


def step(detector: nn.Module) -> dict[str, Tensor]:
    wrapper = build_optim_wrapper(detector, dict(optimizer=dict(type='SGD', lr=0.01)))
    torch.manual_seed(5)
    return detector.train_step(helpers.batch(), wrapper)


def test_synchronised_batchnorm_is_the_students_alone(
    distilled: ConfigDict, by_hand: ConfigDict, teacher_config: ConfigDict
) -> None:
    students = [convert_sync_batchnorm(initialised(cfg)) for cfg in (distilled, by_hand)]
    network = students[0].teacher.network
    assert any(isinstance(module, nn.SyncBatchNorm) for module in students[0].modules())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    for student in students:
        step(student)  # the backbone's BatchNorm is frozen: only a GPU can synchronise it
    assert_close(*students)

    # A teacher that was trained with it runs without.
    teacher_config = copy.deepcopy(teacher_config)
    teacher_config.backbone.norm_cfg.type = 'SyncBN'
    distilled.teacher.config.model = teacher_config.to_dict()
    detector = initialised(distilled)
    step(detector)
    network = detector.teacher.network
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())


def test_channels_last_leaves_the_teachers_answers(distilled: ConfigDict) -> None:
    """mmcv's RoIAlign misreads channels_last: the student's loss is then the plain one's, wrong."""
    plain = initialised(helpers.detector_config()).to(memory_format=torch.channels_last)
    detector = initialised(distilled)
    answers: list[Tensor] = []
    detector.teacher.network.register_forward_hook(
        lambda m, a, o: answers.extend(each.logits for each in o)
    )
    step(copy.deepcopy(detector))
    logs = step(detector.to(memory_format=torch.channels_last))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-4)
    for key, value in step(plain).items():
        if key != 'loss':
            assert torch.equal(logs[key], value), key


@pytest.mark.parametrize('cast', ['half', 'bfloat16', 'double'])
def test_a_whole_model_in_another_precision_fails_as_the_plain_one(
    cast: str, distilled: ConfigDict
) -> None:
    """Neither mmdet's images nor mmcv's RoIAlign follow on the CPU: autocast is the way."""
    messages = []
    for cfg in (helpers.detector_config(), distilled):
        detector = getattr(initialised(cfg), cast)()
        with pytest.raises(RuntimeError) as error:
            step(detector)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
