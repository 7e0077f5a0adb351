from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub

import calkd_det  # noqa: F401  registers the safe globals
from calkd_det import safe_globals, safe_loading
from calkd_det.safe_loading import load_checkpoint, refused_globals


def by_torch(file: Any) -> Any:
    return torch.load(file, weights_only=True)


@pytest.fixture(params=['torch', '2.6 or later', 'below 2.6'])
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """``torch.load`` as mmengine calls it, and ours as it is on newer and on older versions.

    The way of older versions runs on this torch: what it gives to ``torch.load`` they take, too.
    """
    helpers.read_as_newer_torch(monkeypatch, request.param != 'below 2.6')
    return by_torch if request.param == 'torch' else load_checkpoint


def test_what_a_runner_saves_is_loaded(load: Callable, tmp_path: Path) -> None:
    hub = MessageHub.get_instance('safe_loading')
    hub.update_scalars({'train/loss': torch.tensor(1.5), 'train/lr': 0.1, 'n': np.float32(2)})
    hub.update_info_dict({'iter': np.int64(3), 'best': np.float64(0.25), 'half': np.float16(1)})
    torch.save(dict(message_hub=hub.state_dict()), tmp_path / 'runner.pth')
    loaded = load(tmp_path / 'runner.pth')['message_hub']
    buffer = loaded['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == 1.5
    assert buffer.statistics('mean') == 1.5
    assert loaded['runtime_info']['best'] == 0.25


@pytest.mark.parametrize('code', [c for c in np.typecodes['All'] if c not in 'OV'])
def test_arrays_of_every_number_and_text_are_loaded(code: str, load: Callable) -> None:
    array = np.ones(3, dtype=code)
    loaded = load(saved(dict(array=array, scalar=array[0])))
    assert loaded['array'].dtype == array.dtype
    assert (loaded['array'] == array).all()
    assert loaded['scalar'] == array[0]


def test_meta_information_with_nested_dicts_is_loaded(load: Callable) -> None:
    meta = dict(
        groups=ConfigDict(a=dict(b=(1, dict(c='d')))), ids={1, 2}, flags=np.eye(2, dtype=bool)
    )
    loaded = load(saved(meta))
    assert loaded['groups'] == dict(a=dict(b=(1, dict(c='d'))))
    assert loaded['ids'] == {1, 2}
    assert (loaded['flags'] == np.eye(2)).all()


@pytest.mark.parametrize('zipped', [True, False])
def test_a_whole_training_checkpoint_is_loaded(
    zipped: bool, load: Callable, tmp_path: Path
) -> None:
    detector = helpers.build(helpers.detector_config(base_channels=4))
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1, momentum=0.9)
    for parameter in detector.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    content = dict(
        state_dict=detector.state_dict(),
        optimizer=optimizer.state_dict(),
        parameter=torch.nn.Parameter(torch.ones(2)),
        dtype=torch.float16,
    )
    path = tmp_path / 'epoch_1.pth'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load(path)
    assert loaded['state_dict']._metadata == detector.state_dict()._metadata
    for key, value in detector.state_dict().items():
        assert torch.equal(loaded['state_dict'][key], value), key
    assert len(loaded['optimizer']['state']) == len(optimizer.state)
    assert isinstance(loaded['parameter'], torch.nn.Parameter)
    assert loaded['dtype'] is torch.float16
    assert refused_globals(path) == []


def test_what_others_declare_for_a_while_stays_declared(load: Callable) -> None:
    """As onedl-mmengine does around each file that it loads."""
    if load is by_torch:
        with torch.serialization.safe_globals([HistoryBuffer, np.ndarray, np.dtype]):
            pass
    buffer = load(saved(dict(buffer=HistoryBuffer([1.0], [1]), array=np.ones(2))))['buffer']
    assert buffer.mean() == 1.0


class Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


class Fill:
    """Pickled as an object that is created by a call and filled with a state."""

    def __init__(self, function: Any, args: tuple, state: Any) -> None:
        self.reduced = function, args, state

    def __reduce__(self) -> tuple:
        return self.reduced


class Own:
    pass


def saved(content: Any, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, **options)
    file.seek(0)
    return file


PAYLOADS = {
    'call': Call(os.mkdir, 'executed'),
    'attribute': Call(getattr, HistoryBuffer, '__init__'),
    'method': Call(getattr, HistoryBuffer, 'register_statistics'),
    'numpy': Call(getattr, np.ndarray, 'tofile'),
    'eval': Call(eval, '__import__("os").mkdir("executed")'),
    'own_class': Own(),
    'changed_class': Fill(Call, (getattr, HistoryBuffer, 'mean'), (None, dict(a=1))),
}


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('name', PAYLOADS)
def test_nothing_else_became_safe(
    name: str, protocol: int, load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(dict(payload=PAYLOADS[name]), 'evil.pth', pickle_protocol=protocol)
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load('evil.pth')
    assert not (tmp_path / 'executed').exists()


def opcodes(*parts: bytes) -> io.BytesIO:
    """A checkpoint whose pickle is written by hand."""
    file = saved({})
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    written = io.BytesIO()
    with zipfile.ZipFile(written, 'w') as archive:
        for name, content in members.items():
            pickled = b'\x80\x02' + b''.join(parts) + b'.'
            archive.writestr(name, pickled if name.endswith('data.pkl') else content)
    written.seek(0)
    return written


BUFFER = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
MEAN = b'X\x04\x00\x00\x00mean'


@pytest.mark.parametrize(
    'parts',
    [
        # A class is filled: (None, {'mean': 1}) would be set as its attributes.
        (BUFFER, b'N}', MEAN, b'K\x01s\x86b'),
        # What getattr gives is called.
        (b'c__builtin__\ngetattr\n', BUFFER, MEAN, b'\x86RK\x01\x85R'),
        (b'(', BUFFER, b'o'),  # created with OBJ
        (b'(immengine.logging.history_buffer\nHistoryBuffer\n',),  # created with INST
        (b'\x82\x01',),  # a name by its number in a table
        (b'cos\nmkdir\n',),  # named, not even called
    ],
    ids=['build_class', 'call_of_a_result', 'obj', 'inst', 'ext', 'named'],
)
def test_operations_that_no_checkpoint_needs_are_refused(parts: tuple, load: Callable) -> None:
    mean = HistoryBuffer.mean
    with pytest.raises(pickle.UnpicklingError):
        load(opcodes(*parts))
    assert HistoryBuffer.mean is mean


def test_a_tar_of_an_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'old.tar'
    with tarfile.open(path, 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    monkeypatch.setattr(safe_loading, 'torch_takes_named_globals', lambda: False)
    with pytest.raises(pickle.UnpicklingError, match=r'a \.tar file of an old torch'):
        load_checkpoint(path)


@pytest.fixture
def _own_getattr() -> Iterator[None]:
    if not safe_loading.torch_takes_named_globals():
        pytest.skip(f'torch {torch.__version__} takes no names of globals')
    with torch.serialization.safe_globals([getattr]):
        yield


@pytest.mark.usefixtures('_own_getattr')
def test_a_users_own_getattr_keeps_working(load: Callable) -> None:
    buffer = HistoryBuffer([2.0], [1])
    loaded = load(saved(dict(method=Call(getattr, torch.Tensor, 'numel'), buffer=buffer)))
    assert loaded['method'](torch.ones(3)) == 3
    assert loaded['buffer'].mean() == 2


@pytest.mark.usefixtures('_own_getattr')
def test_a_users_own_getattr_works_whichever_of_the_two_torch_takes() -> None:
    assert safe_globals.history_buffer_method(torch.Tensor, 'numel') is torch.Tensor.numel


def test_without_it_the_stand_in_gives_nothing_but_statistics() -> None:
    assert safe_globals.history_buffer_method(HistoryBuffer, 'mean') is HistoryBuffer.mean
    with pytest.raises(ValueError, match='may not ask for the attribute'):
        safe_globals.history_buffer_method(torch.Tensor, 'numel')


@pytest.mark.parametrize('zipped', [True, False])
def test_refused_classes_are_named_without_loading_them(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    content = dict(a=Own(), b=Own(), c=ConfigDict(), d=Call(os.mkdir, 'executed'))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert refused_globals(path) == ['test_safe_loading.Own', f'{os.mkdir.__module__}.mkdir']


@pytest.mark.parametrize('content', [b'', b'class A\nb\n', b'\x80', b'\x80\x02c', b'PK\x03\x04'])
def test_what_is_no_checkpoint_names_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / 'a.pth').write_bytes(content)
    assert refused_globals(tmp_path / 'a.pth') == []
