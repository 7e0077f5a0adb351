"""A run that is killed and resumed is the run that was left alone."""

from __future__ import annotations

import shutil
import signal
from itertools import combinations
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from small_runs import RandomImages, log_of, run, run_until_killed
from torch import nn

from calkd_det.commands.export import export_student
from calkd_det.errors import ConfigError

Teacher = tuple[nn.Module, Path]


def learnt_config(
    teacher_config: ConfigDict, teacher: Teacher, **losses: dict[str, Any]
) -> ConfigDict:
    """A student with losses of feature maps, by default with those that have learnt parts."""
    widths = dict(student_channels=16, teacher_channels=16)
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    cfg.distillation = losses or dict(
        mgd=dict(type='MGDLoss', loss_weight=1e-6, **widths),
        fgd=dict(type='FGDLoss', loss_weight=0.1, **widths),
    )
    return cfg


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_is_the_uninterrupted_run(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    models = dict(
        plain=helpers.detector_config(),
        distilled=helpers.distilled_config(teacher_config, teacher[1]),
        learnt=learnt_config(teacher_config, teacher),
    )
    context = helpers.process_context()
    processes = [
        context.Process(target=run_until_killed, args=(model, tmp_path / f'{name}_killed', 2))
        for name, model in models.items()
    ]
    for process in processes:
        process.start()
    straight = {name: run(model, tmp_path / name) for name, model in models.items()}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL

    for name, model in models.items():
        folder = tmp_path / f'{name}_killed'
        assert [path.name for path in folder.glob('*.pth')] == ['epoch_1.pth']
        resumed = run(model, folder, resume=True)
        assert resumed.iter == straight[name].iter == 4
        expected = straight[name].model.state_dict()
        for key, value in resumed.model.state_dict().items():
            assert torch.equal(value, expected[key]), (name, key)
        parameters = dict(straight[name].model.named_parameters())
        for key, value in resumed.model.named_parameters():
            assert value.isfinite().all(), (name, key)
            assert torch.equal(value, parameters[key]), (name, key)
        assert 'Resumed with another' not in log_of(folder)
    weights = [straight[name].model.state_dict()['neck.fpn_convs.0.conv.weight'] for name in models]
    assert not any(torch.equal(a, b) for a, b in combinations(weights, 2))


def test_resuming_with_another_teacher_or_temperature_is_told(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    work_dir = tmp_path / 'work'
    own = shutil.copy(teacher[1], tmp_path / 'own.pth')

    def resume(epochs: int, **changes: object) -> list[str]:
        cfg = helpers.distilled_config(teacher_config, own, **changes)
        run(cfg, work_dir, epochs=epochs, resume=epochs > 1)
        lines = [line for line in log_of(work_dir).splitlines() if 'Resumed with' in line]
        return [line.partition('Resumed with another ')[2] for line in lines]

    assert resume(1) == []
    moved = shutil.copy(own, tmp_path / 'moved.pth')
    assert resume(2, teacher=dict(checkpoint=str(moved))) == []

    # Other weights under the first name.
    helpers.save_teacher(Path(own), teacher_config, seed=4)
    told = resume(
        3,
        teacher=dict(calibrator=dict(type='TemperatureScaling', temperature=3.0)),
        distillation=dict(tau=2.0),
    )
    assert told == [
        f'model.teacher.checkpoint: {own}, but the run was started with {own} of other content.',
        'model.teacher.calibrator: TemperatureScaling(temperature=3.0), but the run was started '
        'with TemperatureScaling(temperature=1.5).',
        'model.distillation: KDLoss(tau=2.0, loss_weight=1.0), but the run was started with '
        'KDLoss(tau=1.0, loss_weight=1.0).',
    ]
    assert resume(4)[3:] == told[:1]


def test_what_is_remembered_is_no_part_of_the_weights(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    run(helpers.distilled_config(teacher_config, teacher[1]), tmp_path / 'work', epochs=1)
    checkpoint = torch.load(tmp_path / 'work' / 'epoch_1.pth')  # the safe way
    identity = checkpoint['message_hub']['runtime_info']['calkd_teacher']
    assert identity['model.teacher.checkpoint'][0] == str(teacher[1])
    assert list(checkpoint['state_dict']) == list(
        helpers.build(helpers.detector_config()).state_dict()
    )

    # A plain student takes over.
    shutil.copy(tmp_path / 'work' / 'epoch_1.pth', tmp_path / 'epoch_1.pth')
    run(
        helpers.detector_config(),
        tmp_path / 'plain',
        resume=True,
        load_from=str(tmp_path / 'epoch_1.pth'),
    )


def test_learnt_parts_stand_beside_the_weights(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    runner = run(learnt_config(teacher_config, teacher), tmp_path / 'work', epochs=1)
    file = tmp_path / 'work' / 'epoch_1.pth'
    checkpoint = torch.load(file)  # the safe way
    parts = checkpoint['calkd_distillation']
    own = runner.model.learnt_parts.own_state_dict()
    assert parts.keys() == own.keys()
    weight = 'loss_kd_mgd.levels.0.generator.0.weight'
    assert torch.equal(parts[weight], own[weight])
    assert parts['loss_kd_mgd._extra_state']['steps'] == 2
    plain = helpers.build(helpers.detector_config())
    plain.load_state_dict(checkpoint['state_dict'], strict=True)

    export_student(file, tmp_path / 'student.pth')
    exported = torch.load(tmp_path / 'student.pth', weights_only=True)
    assert set(exported) == {'meta', 'state_dict'}

    # A plain student goes on from the weights, and another one with parts of its own.
    run(helpers.detector_config(), tmp_path / 'plain', epochs=1, load_from=str(file))
    other = run(
        learnt_config(teacher_config, teacher),
        tmp_path / 'other',
        epochs=1,
        hooks=[KeepFirstWeight(weight)],
        load_from=str(file),
    )
    first = next(hook for hook in other.hooks if isinstance(hook, KeepFirstWeight))
    assert not torch.equal(first.value, parts[weight])
    names = [type(hook).__name__ for hook in other.hooks]
    assert names.count('LearntPartsHook') == 1


class KeepFirstWeight(Hook):
    """Copies a weight of the learnt parts before the first step."""

    def __init__(self, name: str) -> None:
        self.name = name

    def before_train_epoch(self, runner: Runner) -> None:
        self.value = runner.model.learnt_parts.own_state_dict()[self.name].clone()


def test_resuming_with_other_learnt_parts_is_refused(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    losses = dict(
        none=dict(feat=dict(type='PKDLoss')),
        mgd=dict(mgd=dict(type='MGDLoss', student_channels=16, teacher_channels=16)),
        other=dict(
            mgd=dict(type='MGDLoss', student_channels=16, teacher_channels=16, num_levels=3)
        ),
    )
    configs = {
        name: learnt_config(teacher_config, teacher, **dicts) for name, dicts in losses.items()
    }
    for name in ('none', 'mgd'):
        run(configs[name], tmp_path / name, epochs=1)
    for first, second, told in (
        ('mgd', 'none', 'had learnt parts of loss_kd_mgd, but no loss of the config has any'),
        ('none', 'mgd', 'loss_kd_mgd has learnt parts, but the run that is resumed had none'),
        ('mgd', 'other', r'other learnt parts than those of loss_kd_mgd \(.*levels\.3'),
    ):
        with pytest.raises(ConfigError, match=told):
            run(configs[second], tmp_path / first, resume=True)


def test_averaged_weights_resume_beside_learnt_parts(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    cfg = learnt_config(teacher_config, teacher)
    for name, epochs, resume in (
        ('straight', 2, False),
        ('resumed', 1, False),
        ('resumed', 2, True),
    ):
        hooks = [EMAHook(momentum=0.2)]
        run(cfg, tmp_path / name, epochs=epochs, hooks=hooks, resume=resume)
    straight, resumed = (
        torch.load(tmp_path / name / 'epoch_2.pth') for name in ('straight', 'resumed')
    )
    plain = helpers.build(helpers.detector_config())
    for key in ('state_dict', 'ema_state_dict', 'calkd_distillation'):
        assert straight[key].keys() == resumed[key].keys()
        for name, value in straight[key].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed[key][name]), (key, name)
    plain.load_state_dict(straight['state_dict'], strict=True)
    assert not any('learnt_parts' in name for name in straight['ema_state_dict'])


def test_nested_dicts_and_arrays_of_the_data_set_stop_neither_resuming_nor_the_export(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mmdet's OpenImagesDataset, and any data set whose config gives a dict of its own."""
    meta = dict(
        classes=helpers.CLASSES,
        RELATION_MATRIX=np.eye(3),
        ids=np.arange(3, dtype=np.int16),
        groups=ConfigDict(animals=dict(cat=('tabby',))),
    )
    monkeypatch.setattr(RandomImages, 'metainfo', meta)
    cfg = helpers.distilled_config(teacher_config, teacher[1])
    run(cfg, tmp_path, epochs=1)
    assert run(cfg, tmp_path, epochs=2, resume=True).epoch == 2
    export_student(tmp_path / 'epoch_2.pth', tmp_path / 'student.pth')
    exported = torch.load(tmp_path / 'student.pth', weights_only=True)
    assert exported['meta']['dataset_meta']['ids'] == [0, 1, 2]
    assert exported['meta']['dataset_meta']['groups'] == dict(animals=dict(cat=('tabby',)))


def test_a_checkpoint_replaces_what_was_inherited(
    teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    cfg = helpers.distilled_config(teacher_config, teacher[1], teacher=dict(inherit=['neck']))
    first = run(cfg, tmp_path / 'first', epochs=1)
    expected = first.model.state_dict()
    started = teacher[0].state_dict()['neck.fpn_convs.0.conv.weight']
    assert not torch.equal(expected['neck.fpn_convs.0.conv.weight'], started)
    resumed = run(cfg, tmp_path / 'first', epochs=1, resume=True)
    assert resumed.iter == first.iter
    checkpoint = str(tmp_path / 'first' / 'epoch_1.pth')
    loaded = run(cfg, tmp_path / 'second', epochs=0, load_from=checkpoint)
    assert 'model.teacher.inherit: neck starts from the teacher' in log_of(tmp_path / 'second')
    for runner in (resumed, loaded):
        for key, value in runner.model.state_dict().items():
            assert torch.equal(value, expected[key]), key
