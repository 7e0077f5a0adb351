"""Read a study config and check it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from calkd_det.commands.study.design import (
    FIGURES,
    FITTED,
    METRICS,
    SHARES,
    Cell,
    Comparison,
    Data,
    Detector,
    Preparation,
    Primary,
    Study,
)
from calkd_det.config import check_keys, check_number, read_config
from calkd_det.errors import ConfigError, did_you_mean

T = TypeVar('T')


_REQUIRED = {'name', 'data', 'student', 'teachers', 'cells', 'seeds'}


def read_study(path: str | Path, options: Mapping[str, Any] | None = None) -> Study:
    """Read a study config: a Python config file with ``study = dict(...)``.

    Args:
        path: The file.
        options: Values to change, by their dotted keys.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown, missing or wrong.
    """
    cfg = read_config(path, options)
    if 'study' not in cfg:
        raise ConfigError(f"'{path}' has no 'study': write study = dict(name=..., data=..., ...)")
    return parse_study(cfg.study.to_dict())


def parse_study(content: Mapping[str, Any]) -> Study:
    """Check the dict of a study config; see :func:`read_study`."""
    known = {field.name for field in fields(Study)} | _REQUIRED
    check_keys(content, 'study', known=known, required=_REQUIRED)
    name = _word(content['name'], 'study.name')
    if not all(letter.isalnum() or letter in '-_' for letter in name):
        raise ConfigError(f'study.name names files: letters, digits, - and _, not {name!r}')
    teachers = _by_name(_each(content, 'teachers', _detector), 'study.teachers')
    seeds = _seeds(content['seeds'], 'study.seeds')
    cells = _by_name(_each(content, 'cells', _cell, teachers, seeds), 'study.cells')
    figures = tuple(content.get('figures', ()))
    for figure in figures:
        if figure not in FIGURES:
            raise ConfigError(f'study.figures has {figure!r}: {did_you_mean(str(figure), FIGURES)}')
    reliability = tuple(content.get('reliability', ()))
    for teacher in reliability:
        if teacher not in teachers:
            raise ConfigError(
                f'study.reliability names no teacher: {did_you_mean(str(teacher), teachers)}'
            )
    metrics = _metrics(content.get('metrics', METRICS))
    measure_students = _flag(content, 'measure_students', False)
    comparisons = tuple(_each(content, 'comparisons', _comparison, cells))
    primary = _primary(content, cells, [*metrics, *(SHARES if measure_students else ())])
    if primary is not None:
        primary, comparisons = _with_primary_first(primary, comparisons)
    limit = content.get('measured_images')
    work_dir = Path(content.get('work_dir', 'work_dirs/study'))
    page = Path(content.get('page') or work_dir / f'{name}.md')
    return Study(
        name=name,
        title=content.get('title') or name,
        data=_data(content['data']),
        prepare=tuple(_each(content, 'prepare', _preparation)),
        student=_detector(content['student'], 'study.student', trained=False),
        teachers=teachers,
        cells=cells,
        question=content.get('question', ''),
        primary=primary,
        comparisons=comparisons,
        figures=figures,
        reliability=reliability,
        metrics=metrics,
        target=check_number(content.get('target', 0.5), 'study.target'),
        deterministic=_flag(content, 'deterministic', True),
        resume=_flag(content, 'resume', False),
        keep_weights=_flag(content, 'keep_weights', False),
        gpus_per_run=_whole(content.get('gpus_per_run', 1), 'study.gpus_per_run', 1),
        measured_images=None if limit is None else _whole(limit, 'study.measured_images', 2),
        measure_students=measure_students,
        work_dir=work_dir,
        results=Path(content.get('results') or work_dir / 'results.jsonl'),
        page=page,
        summary_page=Path(content.get('summary_page') or page),
        pictures=Path(content.get('pictures') or work_dir / 'figures'),
    )


def _each(content: Mapping[str, Any], key: str, parse: Callable[..., T], *args: Any) -> list[T]:
    """Return what ``parse(entry, key of the entry, *args)`` makes of each entry of a list."""
    value = content.get(key, ())
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise ConfigError(f'study.{key} must be a list of dicts, but is {value!r}')
    return [parse(entry, f'study.{key}[{i}]', *args) for i, entry in enumerate(value)]


def _by_name(entries: Sequence[Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        if entry.name in found:
            raise ConfigError(f'{key} has two of the name {entry.name!r}: rename one')
        found[entry.name] = entry
    return found


def _data(value: Any) -> Data:
    known = {'mini', 'version', 'held_out_ann', 'held_out_images'}
    check_keys(value, 'study.data', known=known)
    if 'mini' in value:
        if set(value) != {'mini'}:
            raise ConfigError("study.data has 'mini' and so takes no other key")
        check_keys(
            value['mini'],
            'study.data.mini',
            known={'out_dir', 'items', 'source', 'num_images', 'image_size', 'seed'},
            required={'out_dir', 'num_images'},
        )
        mini = dict(value['mini'])
        root = Path(mini['out_dir'])
        return Data(mini, '', root / 'annotations' / 'calibration.json', root / 'calibration')
    check_keys(value, 'study.data', known=known, required=known - {'mini'})
    ann, images = Path(value['held_out_ann']), Path(value['held_out_images'])
    return Data(None, str(value['version']), ann, images)


def _preparation(value: Any, key: str) -> Preparation:
    check_keys(value, key, known={'command', 'creates'}, required={'command', 'creates'})
    command = value['command']
    if isinstance(command, str) or not all(isinstance(word, str) for word in command):
        raise ConfigError(
            f'{key}.command must be a list of words, but is {command!r}: write '
            "['{python}', 'make.py', 'data/mine']"
        )
    return Preparation(tuple(command), Path(_word(value['creates'], f'{key}.creates')))


def _detector(value: Any, key: str, *, trained: bool = True) -> Detector:
    known = {'name', 'config', 'cfg_options'} | ({'seed', 'checkpoint'} if trained else set())
    check_keys(value, key, known=known, required={'name', 'config'})
    options = value.get('cfg_options', {})
    if not isinstance(options, Mapping):
        raise ConfigError(f'{key}.cfg_options must be a dict of dotted keys, but is {options!r}')
    checkpoint = value.get('checkpoint')
    return Detector(
        name=_word(value['name'], f'{key}.name'),
        config=_word(value['config'], f'{key}.config'),
        cfg_options=dict(options),
        seed=_whole(value.get('seed', 0), f'{key}.seed', 0),
        checkpoint=None if checkpoint is None else _word(checkpoint, f'{key}.checkpoint'),
    )


def _cell(value: Any, key: str, teachers: Mapping[str, Detector], seeds: tuple[int, ...]) -> Cell:
    known = {'name', 'teacher', 'teacher_options', 'temperature', 'calibrator', 'loss', 'seeds'}
    check_keys(value, key, known=known, required={'name'})
    name = _word(value['name'], f'{key}.name')
    own = value.get('seeds')
    seeds = seeds if own is None else _seeds(own, f'{key}.seeds')
    teacher = value.get('teacher')
    if teacher is None:
        for other in ('temperature', 'calibrator', 'loss', 'teacher_options'):
            if value.get(other) is not None:
                raise ConfigError(f'{key}.{other} is set, but {key}.teacher is not: name a teacher')
        return Cell(name, None, None, None, seeds)
    if teacher not in teachers:
        raise ConfigError(f'{key}.teacher: {did_you_mean(str(teacher), teachers)}')
    temperature, calibrator = value.get('temperature'), value.get('calibrator')
    if calibrator is not None:
        if temperature is not None:
            raise ConfigError(f'{key} has a temperature and a calibrator: remove one of them')
        if not isinstance(calibrator, Mapping) or 'type' not in calibrator:
            raise ConfigError(
                f"{key}.calibrator must be the config of a calibrator, dict(type='...'), but is "
                f'{calibrator!r}'
            )
        calibrator = dict(calibrator)
    elif temperature != FITTED:
        temperature = check_number(
            temperature,
            f'{key}.temperature',
            hint=f"or '{FITTED}' for the teacher's own; another calibrator is {key}.calibrator",
        )
    loss = value.get('loss')
    if not isinstance(loss, Mapping):
        raise ConfigError(
            f"{key}.loss must be the config of a loss such as dict(type='KDLoss'), or a dict of "
            f'several by name as in model.distillation, not {loss!r}'
        )
    options = _teacher_options(value.get('teacher_options', {}), f'{key}.teacher_options')
    return Cell(name, teacher, temperature, dict(loss), seeds, calibrator, options)


def _teacher_options(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f'{key} must be a dict of further keys of model.teacher, such as dict(denoising=True), '
            f'but is {value!r}'
        )
    for name in ('config', 'checkpoint', 'calibrator'):
        if name in value:
            raise ConfigError(
                f"{key} has '{name}', which the study sets from study.teachers and from the cell's "
                'temperature or calibrator: remove it'
            )
    return dict(value)


def _metrics(value: Any) -> dict[str, str]:
    key = 'study.metrics'
    if not isinstance(value, Mapping) or 'mAP' not in value:
        raise ConfigError(
            f"{key} must be a dict with 'mAP', of which comparisons are, but is {value!r}: write "
            "dict(mAP='coco/bbox_mAP', ...)"
        )
    return {_word(name, key): _word(figure, f'{key}.{name}') for name, figure in value.items()}


def _comparison(value: Any, key: str, cells: Mapping[str, Cell]) -> Comparison:
    check_keys(value, key, known={'of', 'to', 'name'}, required={'of', 'to'})
    sides = []
    for side in ('of', 'to'):
        names = value[side]
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in cells:
                raise ConfigError(f'{key}.{side}: {did_you_mean(str(name), cells)}')
        if not names:
            raise ConfigError(f'{key}.{side} is empty: name a cell')
        sides.append(names)
    of, to = sides
    return Comparison(of, to, value.get('name') or f'{_joined(of)} − {_joined(to)}')


def _primary(
    content: Mapping[str, Any], cells: Mapping[str, Cell], metrics: Sequence[str]
) -> Primary | None:
    value, key = content.get('primary'), 'study.primary'
    question = content.get('question')
    if value is None:
        if question is not None:
            raise ConfigError(
                f'study.question is set, but {key} is not: write the comparison that answers it, '
                'dict(of=..., to=...)'
            )
        return None
    known = {'of', 'to', 'name', 'metric', 'advice'}
    check_keys(value, key, known=known, required={'of', 'to'})
    if question is None:
        raise ConfigError(f'{key} is set, but study.question is not: write what it answers')
    _word(question, 'study.question')
    metric = value.get('metric', 'mAP')
    if metric not in metrics:
        raise ConfigError(
            f'{key}.metric: {did_you_mean(str(metric), metrics)}; those of the classifier need '
            'study.measure_students=True'
        )
    advice = value.get('advice', {})
    if advice:
        texts = {'higher', 'lower', 'none'}
        check_keys(advice, f'{key}.advice', known=texts, required=texts)
    sides = {side: value[side] for side in ('of', 'to', 'name') if side in value}
    return Primary(_comparison(sides, key, cells), metric, dict(advice))


def _with_primary_first(
    primary: Primary, comparisons: Sequence[Comparison]
) -> tuple[Primary, tuple[Comparison, ...]]:
    """Return the primary comparison under its name in the list, and the list that begins by it."""
    sides = (primary.comparison.of, primary.comparison.to)
    same = [c for c in comparisons if (c.of, c.to) == sides]
    first = same[0] if same else primary.comparison
    return replace(primary, comparison=first), (first, *(c for c in comparisons if c is not first))


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f'mean of ({"; ".join(names)})'


def _seeds(value: Any, key: str) -> tuple[int, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f'{key} must be a list of seeds, but is {value!r}: write [0, 1, 2, 3, 4]')
    seeds = tuple(_whole(seed, key, 0) for seed in value)
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f'{key} names a seed twice: {list(seeds)}')
    return seeds


def _whole(value: Any, key: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f'{key} must be a whole number >= {minimum}, but is {value!r}')
    return value


def _word(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f'{key} must be a text, but is {value!r}')
    return value


def _flag(content: Mapping[str, Any], key: str, default: bool) -> bool:
    value = content.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f'study.{key} must be True or False, but is {value!r}')
    return value
