from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import helpers
import pytest
import torch
from mmengine.logging import HistoryBuffer

TOOL = Path(__file__).resolve().parents[1] / 'tools' / 'export_student.py'


@pytest.fixture(scope='module')
def tool() -> dict[str, Callable]:
    return runpy.run_path(str(TOOL))


def test_writes_what_any_mmdet_reads(tool: dict[str, Callable], tmp_path: Path) -> None:
    detector = helpers.build(helpers.detector_config())
    runner, out = tmp_path / 'epoch_1.pth', tmp_path / 'out' / 'student.pth'
    content = dict(
        state_dict=detector.state_dict(),
        meta=dict(epoch=1, dataset_meta=dict(classes=helpers.CLASSES)),
        message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])}),
        optimizer=dict(state={}),
    )
    torch.save(content, runner)
    assert tool['plain_mmdet_refuses'](runner)
    assert tool['main']([str(runner), str(out)]) == 0
    assert not tool['plain_mmdet_refuses'](out)
    exported = torch.load(out)
    assert exported.keys() == {'state_dict', 'meta'}
    assert exported['meta']['dataset_meta']['classes'] == helpers.CLASSES
    detector.load_state_dict(exported['state_dict'], strict=True)


def test_mistakes_are_sentences(
    tool: dict[str, Callable], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    none, text, weights = (tmp_path / name for name in ('none.pth', 'text.pth', 'weights.pth'))
    text.write_text('no checkpoint')
    torch.save({'a': torch.zeros(1)}, weights)
    for args, message in (
        ((none, tmp_path / 'x.pth'), 'there is no file'),
        ((text, tmp_path / 'x.pth'), 'cannot read'),
        ((weights, tmp_path / 'x.pth'), 'is no training checkpoint'),
        ((weights, text), 'exists already'),
    ):
        assert tool['main']([str(arg) for arg in args]) == 2
        assert message in capsys.readouterr().err
    assert text.read_text() == 'no checkpoint'
