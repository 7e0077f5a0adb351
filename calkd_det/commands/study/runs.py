"""The runs of a study: their configs, and the hashes that tell one from another."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config

import calkd_det.detectors
from calkd_det.commands.study.design import FITTED, Cell, Detector, Study
from calkd_det.config import merge_options, read_config
from calkd_det.datasets.mini import GENERATOR_VERSION
from calkd_det.detectors import DistillationMixin
from calkd_det.errors import ConfigError

HASH_LENGTH = 12
HOOK = dict(type='RunFingerprintHook')


@dataclass(frozen=True)
class Run:
    """A training with its evaluation, and for a teacher its calibration.

    Attributes:
        study: the first study that asks for it, and measures a student or reads the fitted
            calibrators of a teacher where any does.
        kind: ``'teacher'`` or ``'student'``.
        name: of the teacher, or of the cell.
        seed: of the training.
        hash: of all that decides the run.
        base_hash: the same without seed, teacher and loss.
        teacher: the teacher's run; None for the student alone and for teachers.
        cell: None for teachers.
    """

    study: Study
    kind: str
    name: str
    seed: int
    hash: str
    base_hash: str
    teacher: Run | None = None
    cell: Cell | None = None

    @property
    def id(self) -> str:
        """What ``--run`` takes."""
        return f'{self.kind}-{self.hash}'

    @property
    def title(self) -> str:
        """For the progress."""
        return f'{self.kind} {self.name}, seed {self.seed}'

    @property
    def folder(self) -> Path:
        """Where its files go."""
        return self.study.work_dir / self.id

    @property
    def settings(self) -> dict[str, Any]:
        """What its row keeps of the study's config and is found by."""
        return {'teacher': self.name} if self.cell is None else self.study.settings(self.cell)

    @property
    def calibration(self) -> Path:
        """Of a teacher: the folder of its fitted calibrators."""
        return self.folder / 'calibration'

    @property
    def is_fitted(self) -> bool:
        """Whether a cell of the study reads the calibration file of this teacher."""
        return self.kind == 'teacher' and any(
            cell.teacher == self.name and cell.reads_calibration
            for cell in self.study.cells.values()
        )

    @property
    def detector(self) -> Detector:
        """The config it trains."""
        return self.study.teachers[self.name] if self.cell is None else self.study.student


def expand(studies: Iterable[Study]) -> list[Run]:
    """Return the runs of all studies, teachers first; what coincides is there once.

    Raises:
        ConfigError: A config cannot be read, or is none of a distilled student.
    """
    runs: dict[str, Run] = {}
    students: dict[str, Run] = {}
    for study in studies:
        used = {cell.teacher for cell in study.cells.values()} - {None}
        teachers = {name: _teacher_run(study, name) for name in study.teachers if name in used}
        for run in teachers.values():
            known_teacher = runs.setdefault(run.hash, run)
            if run.is_fitted and not known_teacher.is_fitted:
                runs[run.hash] = run
        # Seed by seed, so that an unfinished study has whole pairs.
        seeds = sorted({seed for cell in study.cells.values() for seed in cell.seeds})
        for seed in seeds:
            for cell in study.cells.values():
                if seed in cell.seeds:
                    teacher = teachers.get(cell.teacher)
                    run = _student_run(study, cell, seed, runs[teacher.hash] if teacher else None)
                    known = students.setdefault(run.hash, run)
                    if study.measure_students and not known.study.measure_students:
                        students[run.hash] = run
    return [*runs.values(), *students.values()]


def teacher_config(study: Study, teacher: Detector) -> Config:
    """Return the config that a teacher is trained and measured with."""
    cfg = _prepared(study, teacher, teacher.seed)
    for key in ('teacher', 'distillation'):
        if key in cfg.model:
            raise ConfigError(f"study.teachers: '{teacher.name}' is itself a distilled student")
    return cfg


def student_config(
    study: Study,
    cell: Cell,
    seed: int,
    *,
    teacher: str | None = None,
    checkpoint: str | None = None,
    temperature: float | None = None,
    calibration: str | None = None,
) -> Config:
    """Return the config that a student is trained with.

    Args:
        study: Its study.
        cell: Its cell.
        seed: Of the training.
        teacher: The path of the teacher's config.
        checkpoint: The path of its weights.
        temperature: T; of no use for a cell with a calibrator.
        calibration: The path of its calibration file, for a cell that reads it.
    """
    cfg = _prepared(study, study.student, seed)
    options = cfg.model.get('teacher') or {}
    cfg.model.teacher = None
    cfg.model.distillation = None
    _check_distilled(cfg.model.get('type'))
    if cell.teacher is not None:
        # Other options of the teacher, such as its precision, stay the config's.
        kept = {k: v for k, v in options.items() if k not in ('config', 'checkpoint', '_delete_')}
        calibrator = copy.deepcopy(cell.calibrator)
        if calibrator is None:
            calibrator = dict(type='TemperatureScaling', temperature=temperature)
        elif calibration is not None:
            calibrator = {k: calibration if v == FITTED else v for k, v in calibrator.items()}
        cfg.model.teacher = {
            **kept,
            **copy.deepcopy(cell.teacher_options),
            'config': teacher,
            'checkpoint': checkpoint,
            'calibrator': calibrator,
        }
        cfg.model.distillation = copy.deepcopy(cell.loss)
    return cfg


def _check_distilled(kind: Any) -> None:
    """Check that the student's model type is a distilled detector, by its class.

    Raises:
        ConfigError: It is another one, or is not registered.
    """
    key = 'study.student.config: model.type'
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if not isinstance(cls, type):
        raise ConfigError(
            f'{key}: nothing is registered as {kind!r}; does custom_imports of the config name the '
            'module that registers it?'
        )
    if not issubclass(cls, DistillationMixin):
        name = cls.__name__
        known = sorted(set(calkd_det.detectors.__all__) - {'DistillationMixin'})
        hint = f"'CalKD{name}'" if f'CalKD{name}' in known else f'such as {", ".join(known)}'
        raise ConfigError(f'{key} is {name!r}: name a distilled detector, {hint}')


def _teacher_run(study: Study, name: str) -> Run:
    teacher = study.teachers[name]
    content = teacher_config(study, teacher).to_dict()
    content = {
        'config': content,
        'data': _identity(study),
        'held_out': None if study.data.mini else str(study.data.held_out_ann),
        'measured_images': study.measured_images,
        'checkpoint': teacher.checkpoint,
    }
    digest = _hash(content)
    return Run(study, 'teacher', name, teacher.seed, digest, digest)


def _student_run(study: Study, cell: Cell, seed: int, teacher: Run | None) -> Run:
    data = _identity(study)
    content = student_config(
        study,
        cell,
        seed,
        teacher=teacher and teacher.hash,
        temperature=cell.temperature,
    ).to_dict()
    base = copy.deepcopy(content)
    base['randomness'].pop('seed')
    for key in ('teacher', 'distillation'):
        base['model'].pop(key)
    return Run(
        study=study,
        kind='student',
        name=cell.name,
        seed=seed,
        hash=_hash({'config': content, 'data': data}),
        base_hash=_hash({'config': base, 'data': data}),
        teacher=teacher,
        cell=cell,
    )


def _prepared(study: Study, detector: Detector, seed: int) -> Config:
    cfg = copy.deepcopy(_read(detector.config))
    merge_options(cfg, detector.cfg_options, f'of {detector.name!r}')
    if 'model' not in cfg:
        raise ConfigError(f"'{detector.config}' of {detector.name!r} has no 'model'")
    cfg.randomness = dict(seed=seed, deterministic=study.deterministic)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), dict(HOOK)]
    imports = dict(cfg.get('custom_imports') or {})
    names = [name for name in imports.get('imports', ()) if name != 'calkd_det']
    cfg.custom_imports = dict(imports=[*names, 'calkd_det'], allow_failed_imports=False)
    if not study.resume:
        # One checkpoint, the last: nothing else of a run is kept.
        hooks = cfg.setdefault('default_hooks', {})
        checkpoint = dict(type='CheckpointHook', interval=-1, save_last=True)
        hooks['checkpoint'] = {**(hooks.get('checkpoint') or {}), **checkpoint}
    return cfg


def _identity(study: Study) -> dict[str, Any]:
    """Return what is known of data and preparations before they are there."""
    data = {'prepare': [list(step.command) for step in study.prepare]}
    if study.data.mini is None:
        return {**data, 'version': study.data.version}
    request = {k: v for k, v in study.data.mini.items() if k not in ('out_dir', 'source')}
    return {**data, 'mini': request, 'generator': GENERATOR_VERSION}


def _hash(content: Mapping[str, Any]) -> str:
    content = copy.deepcopy(dict(content))
    # Rows were written when the hook had to be imported by its module, which lay elsewhere, as
    # did this one: neither move must redo a run.
    content['config']['custom_imports']['imports'].append('calkd_det.study.fingerprint')
    text = json.dumps(content, sort_keys=True, default=str)
    text = text.replace('calkd_det.commands.study', 'calkd_det.study')
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


_read = cache(read_config)
