"""The calibrators of sigmoid heads, and that of softmax heads with a background's bias."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import dense_cases
import helpers
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from scipy.optimize import brentq
from torch import Tensor, nn

from calkd_det.calibration import (
    BackgroundBiasScaling,
    BetaScaling,
    Calibrator,
    PlattScaling,
)
from calkd_det.errors import ConfigError
from calkd_det.teachers.class_map import ClassMap

RETINANET = next(case for case in dense_cases.CASES if case.name == 'RetinaNet')
PARAMETERS: dict[type[Calibrator], dict[str, float]] = {
    BetaScaling: dict(a=0.7, b=1.6, c=-0.4),
    PlattScaling: dict(a=0.7, b=-0.4),
    BackgroundBiasScaling: dict(temperature=1.6, bias=-0.4),
}
EVERY = pytest.mark.parametrize('cls', PARAMETERS)
SIGMOID = pytest.mark.parametrize('cls', [BetaScaling, PlattScaling])
PER_CLASS: dict[type[Calibrator], dict[str, list[float]]] = {
    BetaScaling: dict(a=[0.7, 1.0, 2.0], b=[1.6, 0.5, 0.0], c=[-0.4, 0.0, 3.0]),
    PlattScaling: dict(a=[0.7, 1.0, 2.0], b=[-0.4, 0.0, 3.0]),
}


def beta(z: float, a: float, b: float, c: float) -> float:
    """The definition, on a score in float64."""
    p = 1 / (1 + math.exp(-z))
    return a * math.log(p) - b * math.log(1 - p) + c


def platt(z: float, a: float, b: float) -> float:
    return a * z + b


DEFINITIONS = {BetaScaling: beta, PlattScaling: platt}


def random_logits(num_classes: int = 3) -> Tensor:
    return 4 * torch.randn(50, num_classes, generator=torch.Generator().manual_seed(0))


@SIGMOID
def test_equals_its_definition(cls: type[Calibrator]) -> None:
    logits = random_logits()
    for parameters in (
        {name: [value] * 3 for name, value in PARAMETERS[cls].items()},
        PER_CLASS[cls],
    ):
        calibrated = cls(**parameters)(logits)
        for row, column in np.ndindex(*logits.shape):
            chosen = {name: values[column] for name, values in parameters.items()}
            expected = DEFINITIONS[cls](float(logits[row, column]), **chosen)
            assert float(calibrated[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    one = cls(**PARAMETERS[cls])(logits)
    listed = cls(**{name: [value] * 3 for name, value in PARAMETERS[cls].items()})(logits)
    assert torch.equal(one, listed)


@SIGMOID
def test_increases_and_can_be_inverted(cls: type[Calibrator]) -> None:
    calibrator = cls(**PARAMETERS[cls])
    z = torch.linspace(-12, 12, 101)
    calibrated = calibrator(z[:, None])[:, 0]
    assert (calibrated.diff() > 0).all()
    for value, target in zip(z.tolist(), calibrated.tolist()):
        found = brentq(lambda x, y=target: DEFINITIONS[cls](x, **PARAMETERS[cls]) - y, -20, 20)
        assert found == pytest.approx(value, abs=1e-4)


def test_background_bias_equals_its_definition_and_can_be_inverted() -> None:
    logits = random_logits(4)
    calibrated = BackgroundBiasScaling(temperature=1.6, bias=-0.4)(logits)
    expected = logits / 1.6
    expected[:, 3] -= 0.4
    torch.testing.assert_close(calibrated, expected)
    scaled_back = BackgroundBiasScaling(temperature=1 / 1.6, bias=0.4 * 1.6)(calibrated)
    torch.testing.assert_close(scaled_back, logits)


@EVERY
def test_the_defaults_change_nothing(cls: type[Calibrator]) -> None:
    torch.testing.assert_close(cls()(random_logits()), random_logits())


@EVERY
def test_is_float32_without_gradients_and_without_a_state(cls: type[Calibrator]) -> None:
    calibrator = cls(**PARAMETERS[cls])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        logits = random_logits().to(dtype).requires_grad_()
        calibrated = calibrator(logits)
        assert calibrated.dtype == torch.float32
        assert not calibrated.requires_grad
        torch.testing.assert_close(calibrated, calibrator(logits.detach().float()))
    assert not list(calibrator.parameters())
    assert not calibrator.state_dict()


@EVERY
def test_extreme_logits_stay_finite(cls: type[Calibrator]) -> None:
    logits = torch.tensor([[-1e4, 0.0, 1e4]])
    assert cls(**PARAMETERS[cls])(logits).isfinite().all()


def test_reads_its_part_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / 'fit.json'
    per_class = {f'class_{cls.field}': values for cls, values in PER_CLASS.items()}
    content = {cls.field: values for cls, values in PARAMETERS.items()} | per_class
    cases = [(cls, {}, values) for cls, values in PARAMETERS.items()]
    cases += [(cls, dict(per_class=True), values) for cls, values in PER_CLASS.items()]
    for cls, options, values in cases:
        path.unlink(missing_ok=True)
        config = dict(type=cls.__name__, parameters=str(path), **options)
        calibrator = MODELS.build(config)
        assert 'not read yet' in repr(calibrator)
        path.write_text(json.dumps({'schema_version': 1, 'temperature': 9, **content}))
        calibrator.prepare()
        torch.testing.assert_close(calibrator(random_logits()), cls(**values)(random_logits()))
        assert "fit.json'" in repr(calibrator)
        assert 'not read yet' not in repr(calibrator)
        assert not calibrator.state_dict()


@EVERY
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'there is no file'),
        ({}, 'holds no object with the key'),
        ('list', 'must be an object with the keys'),
        ('lacking', 'must be an object with the keys'),
        ('spoilt', 'must be a finite number'),
    ],
)
def test_a_bad_file_is_named(
    cls: type[Calibrator], content: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / 'fit.json'
    first = next(iter(PARAMETERS[cls]))
    entries = {
        'list': [1.0],
        'lacking': {first: 1.0},
        'spoilt': {**PARAMETERS[cls], first: '1'},
    }
    if content is not None:
        path.write_text(json.dumps({cls.field: entries[content]} if content else {}))
    with pytest.raises(ConfigError, match=message) as error:
        cls(parameters=str(path)).prepare()
    assert 'fit.json' in str(error.value)
    assert 'teacher.calibrator.parameters' in str(error.value)


@pytest.mark.parametrize(
    ('cls', 'options', 'message'),
    [
        (BetaScaling, dict(a=-0.1), r'calibrator\.a must be a finite number >= 0'),
        (BetaScaling, dict(b=-0.1), r'calibrator\.b must be a finite number >= 0'),
        (BetaScaling, dict(c=math.nan), r'calibrator\.c must be a finite number'),
        (BetaScaling, dict(a=[1.0, -1.0]), r'calibrator\.a\[1\] must be'),
        (BetaScaling, dict(a=[]), r'calibrator\.a must be'),
        (BetaScaling, dict(c='0'), r'calibrator\.c must be .* or a list'),
        (PlattScaling, dict(a=-0.1), r'calibrator\.a must be a finite number >= 0'),
        (PlattScaling, dict(a=True), r'calibrator\.a must be'),
        (PlattScaling, dict(b=math.inf), r'calibrator\.b must be'),
        (PlattScaling, dict(parameters=3), r'calibrator\.parameters must be the path'),
        (PlattScaling, dict(per_class=True), r'per_class .* not given'),
        (PlattScaling, dict(per_class=1), r'per_class must be True or False'),
        (BetaScaling, dict(b=2.0, parameters='f.json'), "both 'b' and the file"),
        (BackgroundBiasScaling, dict(temperature=0), r'calibrator\.temperature must be .* > 0'),
        (BackgroundBiasScaling, dict(bias=[1.0]), r'calibrator\.bias must be a finite number'),
        (BackgroundBiasScaling, dict(bias=1.0, parameters='f.json'), 'both numbers and the file'),
        (BackgroundBiasScaling, dict(parameters=1.0), r'calibrator\.parameters must be the path'),
    ],
)
def test_bad_values_are_named(cls: type[Calibrator], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**options)


@SIGMOID
def test_a_list_of_another_length_is_refused(cls: type[Calibrator]) -> None:
    with pytest.raises(ConfigError, match='has 3 numbers, but the teacher has 4 classes'):
        cls(**PER_CLASS[cls])(random_logits(4))


def loss_of(cfg: ConfigDict) -> float:
    detector = helpers.build(cfg)
    detector.dataset_meta = dict(classes=helpers.CLASSES)
    detector.init_weights()
    torch.manual_seed(5)
    return helpers.loss(detector.train(), helpers.batch())['loss_kd'].item()


def dense_config(folder: Path, calibrator: dict) -> ConfigDict:
    teacher = helpers.build(RETINANET.teacher)
    torch.nn.init.normal_(teacher.bbox_head.retina_cls.weight, std=0.1)
    meta = dict(dataset_meta=dict(classes=helpers.CLASSES))
    path = folder / 'teacher.pth'
    torch.save(dict(meta=meta, state_dict=teacher.state_dict()), path)
    cfg = copy.deepcopy(RETINANET.student)
    cfg.type = RETINANET.detector
    cfg.teacher = dict(
        config=dict(model=RETINANET.teacher.to_dict()), checkpoint=str(path), calibrator=calibrator
    )
    cfg.distillation = RETINANET.distillation
    return cfg


def test_equal_to_temperature_scaling_in_a_dense_student(tmp_path: Path) -> None:
    losses = [
        loss_of(dense_config(tmp_path, calibrator))
        for calibrator in (
            dict(type='TemperatureScaling', temperature=0.5),
            dict(type='PlattScaling', a=2.0),
            dict(type='BetaScaling', a=2.0, b=2.0),
            dict(type='BetaScaling', a=2.0, b=2.0, c=1.0),
        )
    ]
    assert losses[1:3] == pytest.approx(losses[:1] * 2, rel=1e-4)
    assert losses[3] != pytest.approx(losses[0], rel=1e-2)


def test_equal_to_temperature_scaling_in_a_student_with_rois(
    teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    losses = [
        loss_of(helpers.distilled_config(teacher_config, teacher[1], teacher=dict(calibrator=c)))
        for c in (
            dict(type='TemperatureScaling', temperature=2.0),
            dict(type='BackgroundBiasScaling', temperature=2.0),
            dict(type='BackgroundBiasScaling', temperature=2.0, bias=1.0),
        )
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] != pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize(
    'calibrator',
    [
        dict(type='BackgroundBiasScaling'),
        dict(type='ClassTemperatureScaling', temperatures=[1.0] * 3),
        dict(type='ForegroundBackgroundScaling', temperatures=[1.0] * 3),
    ],
)
def test_a_sigmoid_head_refuses_those_of_a_softmax(tmp_path: Path, calibrator: dict) -> None:
    detector = helpers.build(dense_config(tmp_path, calibrator))
    detector.dataset_meta = dict(classes=helpers.CLASSES)
    message = r'is for heads that classify by softmax, but .* by sigmoid: use .*BetaScaling'
    with pytest.raises(ConfigError, match=message):
        detector.init_weights()


@SIGMOID
def test_a_softmax_head_refuses_those_of_a_sigmoid(
    cls: type[Calibrator], teacher_config: ConfigDict, teacher: tuple[nn.Module, Path]
) -> None:
    calibrator = dict(type=cls.__name__)
    cfg = helpers.distilled_config(teacher_config, teacher[1], teacher=dict(calibrator=calibrator))
    detector = helpers.build(cfg)
    message = r'is for heads that classify by sigmoid, but .* by softmax: use .*Background'
    with pytest.raises(ConfigError, match=message):
        detector.init_weights()


@SIGMOID
def test_lists_are_of_the_classes_before_the_class_map(cls: type[Calibrator]) -> None:
    """A student that knows two of the teacher's classes, in another order."""
    calibrated = ClassMap([2, 0], 3, 'sigmoid')(cls(**PER_CLASS[cls])(random_logits()))
    chosen = {name: [values[2], values[0]] for name, values in PER_CLASS[cls].items()}
    torch.testing.assert_close(calibrated, cls(**chosen)(random_logits()[:, [2, 0]]))


def test_the_background_has_its_bias_before_other_classes_join_it() -> None:
    logits = random_logits(4)
    mapped = ClassMap([1], 3)(BackgroundBiasScaling(2.0, 1.0)(logits))
    scores = (logits.double() / 2).exp()
    scores[:, 3] *= math.e
    expected = torch.stack([scores[:, 1], scores[:, 0] + scores[:, 2] + scores[:, 3]], dim=1)
    torch.testing.assert_close(mapped.double().exp(), expected, rtol=1e-5, atol=0)
