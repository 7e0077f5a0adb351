"""Report on a teacher's file, and on how the teacher was made to fit the student."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calkd_det.calibration import Calibrator, ClassTemperatureScaling, TemperatureScaling
from calkd_det.commands.doctor.finding import Finding
from calkd_det.measurement.held_out import sha256_of
from calkd_det.teachers import TeacherNetwork
from calkd_det.teachers.class_map import ClassMap
from calkd_det.teachers.whole_teacher import WholeTeacher

_SHOWN_CLASSES = 5


def check_teacher(
    student: nn.Module, student_classes: Sequence[str] | None, whole: WholeTeacher
) -> Iterator[Finding]:
    """Report how a built teacher fits its student.

    Args:
        student: The detector, whose teacher is built.
        student_classes: The student's class names, None if unknown.
        whole: The whole detector of the same teacher.
    """
    network = student.teacher.network
    yield Finding(
        'ok',
        'teacher file',
        f"'{whole.checkpoint}' fills every weight of the {type(whole.detector).__name__}",
    )
    yield check_classes(student_classes, whole.classes, network.class_map)
    yield check_inputs(student.data_preprocessor, whole.detector.data_preprocessor)
    yield check_folding(whole.detector, network)
    yield from check_calibrator(network.calibrator, whole.checkpoint)
    yield check_memory(network)


def check_classes(
    student: Sequence[str] | None, teacher: Sequence[str] | None, class_map: ClassMap | None
) -> Finding:
    """Report how the classes were matched."""
    title = 'classes'
    if student is None or teacher is None:  # the build has warned of it
        return Finding('ok', title, 'not compared by name')
    if class_map is None:
        return Finding('ok', title, f'the same {len(student)}, in the same order')
    others = [teacher[index] for index in class_map.background[:-1].tolist()]
    if not others:
        return Finding('ok', title, f'the same {len(student)} in another order, matched by name')
    few = ', '.join(others[:_SHOWN_CLASSES]) + (', ...' if len(others) > _SHOWN_CLASSES else '')
    return Finding(
        'ok',
        title,
        f"{len(student)} of the teacher's {len(teacher)}, matched by name; {len(others)} of its "
        f'own count as background: {few}',
    )


def check_inputs(student: ImgDataPreprocessor, teacher: ImgDataPreprocessor) -> Finding:
    """Report what differs in the normalisation of images."""
    theirs = _normalisation(teacher)
    changes = [
        f'{key} {value} to {theirs[key]}'
        for key, value in _normalisation(student).items()
        if value != theirs[key]
    ]
    text = f'converted for the teacher: {"; ".join(changes)}' if changes else 'normalised alike'
    return Finding('ok', 'images', text)


def _normalisation(preprocessor: ImgDataPreprocessor) -> dict[str, Any]:
    normalised = preprocessor._enable_normalize
    return {
        'mean': _format_numbers(preprocessor.mean) if normalised else 'none',
        'std': _format_numbers(preprocessor.std) if normalised else 'none',
        'channels': 'flipped' if preprocessor._channel_conversion else 'as loaded',
        'padding': preprocessor.pad_value,
        'divisor': preprocessor.pad_size_divisor,
    }


def _format_numbers(values: Tensor) -> str:
    return f'({", ".join(f"{value:.6g}" for value in values.flatten().tolist())})'


def check_folding(whole: nn.Module, network: TeacherNetwork) -> Finding:
    """Report whether BatchNorm was folded into the convolutions."""
    before, after = (
        sum(isinstance(module, _BatchNorm) for module in detector.modules())
        for detector in (whole, network.detector)
    )
    if after:  # the build has warned of it
        text = f'{after} layers not folded'
    else:
        text = f'{before} layers folded into convolutions' if before else 'none to fold'
    return Finding('ok', 'BatchNorm', text)


def check_calibrator(calibrator: Calibrator, checkpoint: str) -> Iterator[Finding]:
    """Report T, and whether the file with T was fitted for this teacher."""
    title = 'calibrator'
    path = getattr(calibrator, 'path', None)
    text = _describe(calibrator) + ('' if path is None else f", from '{path}'")
    if path is None:
        yield Finding('ok', title, text)
        return
    content = json.loads(Path(path).read_text(encoding='utf-8'))
    if content.get('at_bound'):
        yield Finding('warning', title, f"the fit of '{path}' stopped at a bound: not to be used")
    about = content.get('teacher')
    fitted_for = about.get('checkpoint_sha256') if isinstance(about, dict) else None
    if fitted_for is None:
        text += '; the file does not say which teacher it was fitted for'
        yield Finding('warning', title, text)
    elif not Path(checkpoint).is_file():
        text += '; not compared with the teacher, whose file is not on this machine'
        yield Finding('warning', title, text)
    elif fitted_for != sha256_of(Path(checkpoint)):
        name = about.get('checkpoint')
        text += f"; it was fitted for another teacher, '{name}': fit it anew for '{checkpoint}'"
        yield Finding('warning', title, text)
    else:
        yield Finding('ok', title, f'{text}; fitted for this very teacher file')


def _describe(calibrator: Calibrator) -> str:
    name = type(calibrator).__name__
    if isinstance(calibrator, TemperatureScaling):
        plain = ', which is plain KD' if calibrator.temperature == 1 else ''
        return f'{name}, T = {calibrator.temperature:.4g}{plain}'
    if isinstance(calibrator, ClassTemperatureScaling):
        low, high = (float(value) for value in calibrator.temperatures.aminmax())
        return f'{name}, T from {low:.4g} to {high:.4g}'
    return str(calibrator)


def check_memory(network: TeacherNetwork) -> Finding:
    """Report the memory of the part of the teacher that training keeps."""
    tensors = [*network.parameters(), *network.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    text = f'{size / 2**20:.1f} MiB of weights stay loaded'
    if not any(tensor.is_cuda for tensor in tensors):
        text += '; its activations come on top, and only a GPU run of this tool measures them'
    return Finding('ok', 'memory', text)
