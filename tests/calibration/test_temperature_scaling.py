from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from calkd_det.calibration import TemperatureScaling
from calkd_det.errors import ConfigError


def test_divides_in_float32() -> None:
    logits = torch.randn(5, 4).half()
    scaled = TemperatureScaling(3)(logits)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, logits.float() / 3)


def test_default_is_the_papers() -> None:
    assert TemperatureScaling().temperature == 1.5


@pytest.mark.parametrize('value', [0, -1.5, math.nan, math.inf, -math.inf, True, None, [1.5], 1j])
def test_a_bad_temperature_is_refused_when_built(value: object) -> None:
    with pytest.raises(ConfigError, match=r'teacher\.calibrator\.temperature must be a finite'):
        TemperatureScaling(value)


def test_reads_a_file_when_training_starts_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / 'fit.json'
    calibrator = TemperatureScaling(str(path))
    path.write_text(json.dumps(dict(schema_version=1, temperature=1.37)))
    assert 'not read yet' in repr(calibrator)
    calibrator.prepare()
    path.unlink()
    assert calibrator.temperature == 1.37
    assert "fit.json': 1.37" in repr(calibrator)
    assert torch.equal(calibrator(torch.ones(1, 2)), torch.ones(1, 2) / 1.37)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'there is no file'),
        ('{', 'as JSON'),
        (b'\xff\xfe\x00', 'as JSON'),
        ('[1.5]', "no object with the key 'temperature'"),
        ('{"T": 1.5}', "no object with the key 'temperature'"),
        ('{"temperature": -1}', 'must be a finite number > 0, but is -1'),
        ('{"temperature": NaN}', 'must be a finite number > 0, but is nan'),
        ('{"temperature": "1.5"}', "but is '1.5'"),
        ('{"temperature": 1.5, "schema_version": 2}', 'schema_version 2'),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / 'fit.json'
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    calibrator = TemperatureScaling(str(path))
    with pytest.raises(ConfigError, match=message) as error:
        calibrator.prepare()
    assert 'fit.json' in str(error.value)
    assert 'teacher.calibrator.temperature' in str(error.value)
