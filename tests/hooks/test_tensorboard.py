"""What the log tells of the teacher arrives in TensorBoard."""

from __future__ import annotations

from pathlib import Path

import helpers
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

FIGURES = [
    *('teacher_accuracy', 'teacher_agreement', 'teacher_confidence'),
    *('teacher_ece', 'teacher_ece_over', 'teacher_ece_under'),
    *('teacher_ece_all', 'teacher_ece_all_over', 'teacher_ece_all_under'),
]


@pytest.mark.oracle
def test_figures_on_the_teacher_are_in_tensorboard(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = helpers.batch()
    images = [
        dict(inputs=image, data_samples=sample)
        for image, sample in zip(data['inputs'], data['data_samples'])
    ]
    torch.manual_seed(0)
    runner = Runner(
        model=helpers.build(helpers.distilled_config(teacher_config, teacher[1])),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(images, batch_size=1, collate_fn=pseudo_collate),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=-1),
        ),
        custom_hooks=[dict(type='TeacherCalibrationHook', interval=1)],
        visualizer=dict(
            type='DetLocalVisualizer',
            name='test_tensorboard',
            vis_backends=[dict(type='TensorboardVisBackend')],
        ),
        default_scope='mmdet',
        experiment_name='test_tensorboard',
    )
    runner.train()
    (folder,) = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    assert {*FIGURES, 'loss_kd', 'loss_cls'} <= set(events.Tags()['scalars'])
    for name in FIGURES:
        written = events.Scalars(name)
        assert [event.step for event in written] == [1, 2, 3, 4]
        assert all(0 <= event.value <= 1 for event in written)
        logged = runner.message_hub.get_scalar(f'train/{name}').current()
        assert written[-1].value == pytest.approx(float(logged), abs=1e-6)
