"""Check whether a config distils, and build its student and its training data."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from calkd_det.commands.doctor.finding import Finding
from calkd_det.detectors import DistillationMixin
from calkd_det.errors import ConfigError
from calkd_det.teachers.class_names import configured_class_names, dataset_class_names

KEYS = ('teacher', 'distillation')


def build_student(cfg: Config) -> nn.Module:
    """Build the model of a config on the CPU, without its teacher and its initial weights.

    Raises:
        ConfigError: The config has no model, a key of this package is wrong, or a detector is
            given such a key and does not take it.
    """
    if 'model' not in cfg:
        raise ConfigError(f"'{cfg.filename}' has no 'model'")
    _check_plain_type(cfg.model)
    return MODELS.build(copy.deepcopy(cfg.model))


def _check_plain_type(model: Mapping) -> None:
    """Check that the detector takes this package's keys, where it is given any.

    Raises:
        ConfigError: It does not.
    """
    keys = [key for key in KEYS if key in model]
    kind = model.get('type')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if not keys or not isinstance(cls, type) or issubclass(cls, DistillationMixin):
        return
    parameters = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_KEYWORD or p.name == keys[0] for p in parameters):
        return
    calkd = f'CalKD{cls.__name__}'
    advice = f'write type={calkd!r}' if calkd in MODELS.module_dict else 'see docs/detectors.md'
    raise ConfigError(
        f'model.type is {cls.__name__}, a plain detector, which has no key {keys[0]!r}: training '
        f'stops there; {advice}'
    )


def find_distilled(model: nn.Module) -> nn.Module | None:
    """Return the CalKD detector that a model is or holds, None if there is none."""
    return next((part for part in model.modules() if isinstance(part, DistillationMixin)), None)


def check_distillation(cfg: Config, model: nn.Module) -> Iterator[Finding]:
    """Report whether a training with this config distils, and with which losses."""
    stray = [key for key in KEYS if cfg.get(key) is not None and cfg.model.get(key) is None]
    student = find_distilled(model)
    if stray and (student is None or student.teacher is None or not student.distillation):
        yield Finding(
            'warning',
            'distillation',
            f'{" and ".join(stray)} stand beside model, where nothing reads them: write '
            f'model=dict({", ".join(f"{key}=dict(...)" for key in stray)})',
        )
    if student is None:
        yield _no_calkd_detector(cfg, type(model).__name__)
        return
    name = type(student).__name__
    if student is not model:
        yield Finding(
            'warning',
            'distillation',
            f'cannot tell all: model is a {type(model).__name__} that holds a {name}. Only the '
            'latter and its teacher are looked over, as they are alone',
        )
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


def _no_calkd_detector(cfg: Config, name: str) -> Finding:
    own = [key for key in KEYS if key in cfg.model]
    if own:  # arguments of another package's detector
        text = (
            f'cannot tell: model.type is {name}, no CalKD detector, with a {" and a ".join(own)} '
            'of its own'
        )
        return Finding('warning', 'distillation', text)
    text = (
        f'this is no CalKD config: model.type is {name}, which has no teacher. Use '
        'CalKDFasterRCNN with teacher=dict(...) and distillation=dict(...)'
    )
    return Finding('error', 'distillation', text)


def build_train_loader(cfg: Config) -> DataLoader:
    """Build the loader of the config's training data, without worker processes.

    Raises:
        ConfigError: The config has no ``train_dataloader``.
    """
    if not cfg.get('train_dataloader'):
        raise ConfigError(f"'{cfg.filename}' has no train_dataloader")
    loader = copy.deepcopy(cfg.train_dataloader)
    loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    loader.pop('prefetch_factor', None)
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        return Runner.build_dataloader(loader, seed=0)


def student_classes(cfg: Config, loader: DataLoader | None) -> tuple[str, ...] | None:
    """Return the class names of the training data by label, or of its config without a loader."""
    if loader is not None:
        return dataset_class_names(loader.dataset)
    return configured_class_names((cfg.get('train_dataloader') or {}).get('dataset'))


def initialise(model: nn.Module) -> None:
    """Give a model its initial weights as at the start of training, without its teachers."""
    distilled = [part for part in model.modules() if isinstance(part, DistillationMixin)]
    losses = [part.distillation for part in distilled]
    for part in distilled:
        part.distillation = {}
    try:
        model.init_weights()
    finally:
        for part, own in zip(distilled, losses):
            part.distillation = own
