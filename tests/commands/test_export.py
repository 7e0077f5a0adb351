from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from calkd_cli import main
from calkd_det import safe_loading
from calkd_det.commands.export import plain_data


def plain_mmdet_refuses(path: Path) -> list[str]:
    """What ``torch.load`` refuses where calkd_det is not imported."""
    if not safe_loading.torch_takes_named_globals():
        pytest.skip(f'torch {torch.__version__} does not tell what it refuses')
    declared = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    finally:
        torch.serialization.add_safe_globals(declared)


@pytest.fixture(params=['2.6 or later', 'below 2.6'])
def _torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read a file, though this torch needs only one."""
    helpers.read_as_newer_torch(monkeypatch, request.param == '2.6 or later')


@pytest.mark.usefixtures('_torch')
def test_writes_what_any_mmdet_reads(tmp_path: Path) -> None:
    detector = helpers.build(helpers.detector_config(base_channels=4))
    runner, out = tmp_path / 'epoch_1.pth', tmp_path / 'out' / 'student.pth'
    meta = dict(
        classes=helpers.CLASSES,
        RELATION_MATRIX=np.eye(3),
        names=np.array(['a', 'b']),
        groups=ConfigDict(animals=dict(cat=[1, 2])),
        threshold=np.float32(0.5),
        ids={1, 2},
    )
    content = dict(
        state_dict=detector.state_dict(),
        meta=dict(epoch=1, dataset_meta=meta),
        message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])}),
        optimizer=dict(state={}),
    )
    torch.save(content, runner)
    assert plain_mmdet_refuses(runner)
    assert main(['export', str(runner), str(out)]) == 0
    assert not plain_mmdet_refuses(out)
    exported = torch.load(out, weights_only=True)
    assert exported.keys() == {'state_dict', 'meta'}
    assert exported['meta'] == dict(
        epoch=1,
        dataset_meta=dict(
            classes=helpers.CLASSES,
            RELATION_MATRIX=np.eye(3).tolist(),
            names=['a', 'b'],
            groups=dict(animals=dict(cat=[1, 2])),
            threshold=0.5,
            ids={1, 2},
        ),
    )
    detector.load_state_dict(exported['state_dict'], strict=True)
    assert isinstance(exported['state_dict'], OrderedDict)
    assert exported['state_dict']._metadata == detector.state_dict()._metadata


class Own:
    """A class that a user's data set puts into its meta information."""


@pytest.mark.parametrize(
    ('value', 'named'),
    [(Own(), 'Own'), (np.array([None, 1], dtype=object), 'ndarray'), (object(), 'object')],
)
def test_what_is_no_plain_data_is_named(value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf'meta\.a\[0\] is a {named}, which is no plain data'):
        plain_data(dict(a=[value]), 'meta')


def test_an_object_of_ones_own_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(dict(state_dict={}, meta=dict(own=Own())), tmp_path / 'a.pth')
    assert main(['export', str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')]) == 1
    assert 'objects that are no plain data: test_export.Own' in capsys.readouterr().err
    assert not (tmp_path / 'b.pth').exists()


@pytest.mark.usefixtures('_torch')
def test_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    none, text, weights = (tmp_path / name for name in ('none.pth', 'text.pth', 'weights.pth'))
    text.write_text('no checkpoint')
    torch.save({'a': torch.zeros(1)}, weights)
    for args, message in (
        ((none, tmp_path / 'x.pth'), 'there is no file'),
        ((text, tmp_path / 'x.pth'), 'cannot read'),
        ((weights, tmp_path / 'x.pth'), 'is no training checkpoint'),
        ((weights, text), 'exists already'),
    ):
        assert main(['export', *map(str, args)]) == 1
        assert message in capsys.readouterr().err
    assert text.read_text() == 'no checkpoint'
