"""The student: whether its config distils at all, and whether it and its data can be built."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import redirect_stdout

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from calkd_det.commands.doctor.finding import Finding
from calkd_det.detectors import DistillationMixin
from calkd_det.errors import ConfigError
from calkd_det.teachers.source import read_source


def build_student(cfg: Config) -> nn.Module:
    """Builds the model of a config on the CPU, without its teacher and its initial weights.

    Raises:
        ConfigError: The config has no model, or a key of this package is wrong.
    """
    if 'model' not in cfg:
        raise ConfigError(f"'{cfg.filename}' has no 'model'")
    return MODELS.build(copy.deepcopy(cfg.model))


def check_distillation(cfg: Config, student: nn.Module) -> Iterator[Finding]:
    """Says whether training with this config would distil, and with which losses."""
    name = type(student).__name__
    if not isinstance(student, DistillationMixin):
        yield Finding(
            'error',
            'distillation',
            f'this is no CalKD config: model.type is {name}, which has no teacher. Use '
            'CalKDFasterRCNN with teacher=dict(...) and distillation=dict(...)',
        )
        return
    imports = (cfg.get('custom_imports') or {}).get('imports') or ()
    imports = [imports] if isinstance(imports, str) else imports
    if not any(module.split('.')[0] == 'calkd_det' for module in imports):
        yield Finding(
            'warning',
            'custom_imports',
            f"does not name calkd_det: unless another import of yours does, mmdet's train.py will "
            f'not know {name}. mmengine replaces an inherited custom_imports by your own',
        )
    if not student.distilling:
        why = 'has loss_weight=0' if student.distillation else 'is None'
        yield Finding(
            'warning',
            'distillation',
            f'off: model.distillation {why}, so no teacher is loaded and the student trains alone',
        )
        return
    losses = ', '.join(f'{key} = {loss}' for key, loss in student.distillation.items())
    yield Finding('ok', 'distillation', f'{name} with {losses}')


def build_train_loader(cfg: Config) -> DataLoader:
    """The loader of the config's training data, in this process instead of in workers.

    Raises:
        ConfigError: The config has none.
    """
    if not cfg.get('train_dataloader'):
        raise ConfigError(f"'{cfg.filename}' has no train_dataloader")
    loader = copy.deepcopy(cfg.train_dataloader)
    loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    loader.pop('prefetch_factor', None)
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        return Runner.build_dataloader(loader, seed=0)


def student_classes(cfg: Config, loader: DataLoader | None) -> tuple[str, ...] | None:
    """Class names of the training data, or of its config where the data cannot be read."""
    if loader is not None:
        classes = getattr(loader.dataset, 'metainfo', {}).get('classes')
        return None if classes is None else tuple(classes)
    return read_source(cfg.to_dict(), checkpoint='none is read').classes


def initialise(student: nn.Module) -> None:
    """Gives a student its initial weights as the start of training does, its teacher left out."""
    distilled = isinstance(student, DistillationMixin)
    plain = super(DistillationMixin, student) if distilled else student
    plain.init_weights()
