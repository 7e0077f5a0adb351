"""Teacher files: those that fit are used, of the others a sentence says what to do."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.fileio import BaseStorageBackend
from mmengine.fileio.backends.registry_utils import backends
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from calkd_det import safe_loading
from calkd_det.errors import TeacherError
from calkd_det.teachers import checkpoint as checkpoint_module
from calkd_det.teachers import checkpoint_file
from calkd_det.teachers.checkpoint import load_weights

Teacher = tuple[nn.Module, Path]


def state_dict(detector: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in detector.state_dict().items()}


def refusal(cfg: ConfigDict, path: Path) -> str:
    with pytest.raises(TeacherError, match=r'^model\.teacher\.checkpoint: ') as error:
        load_weights(helpers.build(cfg), str(path))
    assert path.name in str(error.value)
    return str(error.value)


# Another architecture, other classes


@pytest.mark.parametrize(('stored', 'wanted'), [(50, 18), (18, 50), (50, 101), (101, 50), (34, 18)])
def test_a_file_of_another_resnet_is_recognised(stored: int, wanted: int, tmp_path: Path) -> None:
    path = tmp_path / 'teacher.pth'
    torch.save(
        helpers.build(helpers.detector_config(depth=stored, base_channels=4)).state_dict(), path
    )
    message = refusal(helpers.detector_config(depth=wanted, base_channels=4), path)
    assert f'looks like a ResNet-{stored}, the one of the config is a ResNet-{wanted}' in message


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_another_number_of_classes_is_told_in_classes(use_sigmoid: bool, tmp_path: Path) -> None:
    model = helpers.detector_config(base_channels=4)
    model.roi_head.bbox_head.loss_cls.use_sigmoid = use_sigmoid
    torch.save(helpers.build(model).state_dict(), tmp_path / 'teacher.pth')
    model.roi_head.bbox_head.num_classes = 80
    message = refusal(model, tmp_path / 'teacher.pth')
    assert 'The checkpoint has 3 classes, the config 80: set num_classes' in message


def test_another_head_names_its_weights(teacher_config: ConfigDict, teacher: Teacher) -> None:
    model = copy.deepcopy(teacher_config)
    model.roi_head.bbox_head.type = 'Shared4Conv1FCBBoxHead'
    message = refusal(model, teacher[1])
    assert 'Give the config that this checkpoint was trained with' in message


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_file_of_a_diverged_training_is_refused(
    value: float, teacher_config: ConfigDict, teacher: Teacher, tmp_path: Path
) -> None:
    weights = state_dict(teacher[0])
    weights['neck.fpn_convs.0.conv.weight'].view(-1)[5] = value
    torch.save(dict(state_dict=weights), tmp_path / 'teacher.pth')
    message = refusal(teacher_config, tmp_path / 'teacher.pth')
    assert 'NaN or infinity in 1 weights: neck.fpn_convs.0.conv.weight. The training' in message


# Files that hold more than one set of weights


def test_of_a_checkpoint_with_ema_the_averaged_weights_are_used(
    teacher_config: ConfigDict, tmp_path: Path
) -> None:
    raw, averaged = helpers.build(teacher_config, seed=1), helpers.build(teacher_config, seed=2)
    hook = EMAHook()
    hook.src_model = raw
    hook.ema_model = ExponentialMovingAverage(averaged)
    content = dict(state_dict=raw.state_dict())
    hook.before_save_checkpoint(None, content)
    assert 'ema_state_dict' in content
    torch.save(content, tmp_path / 'epoch_1.pth')
    loaded = helpers.build(teacher_config, seed=3)
    load_weights(loaded, str(tmp_path / 'epoch_1.pth'))
    for key, value in averaged.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def old_ema(detector: nn.Module) -> dict[str, Tensor]:
    """As mmcv's and mmdet 2's EMAHook: every parameter once more, as a buffer."""
    plain = state_dict(detector)
    return {**plain, **{f'ema_{key.replace(".", "_")}': value + 1 for key, value in plain.items()}}


def razor(detector: nn.Module) -> dict[str, Tensor]:
    """As MMRazor saves a student and its teacher."""
    student = helpers.build(helpers.detector_config(base_channels=4))
    return {
        **{f'architecture.{key}': value for key, value in student.state_dict().items()},
        **{f'teacher.{key}': value for key, value in state_dict(detector).items()},
    }


def semi_supervised(detector: nn.Module) -> dict[str, Tensor]:
    """As mmdet's SoftTeacher: both have one architecture."""
    plain = state_dict(detector)
    return {f'{who}.{key}': value for who in ('student', 'teacher') for key, value in plain.items()}


def wrapped(detector: nn.Module) -> dict[str, Tensor]:
    return {f'detector.{key}': value for key, value in state_dict(detector).items()}


@pytest.mark.parametrize(
    ('combine', 'message'),
    [
        (old_ema, "The keys 'ema_...' are copies that an EMA hook kept"),
        (razor, "a whole detector under 'architecture.' and 'teacher.'"),
        (semi_supervised, "a whole detector under 'student.' and 'teacher.'"),
        (wrapped, "a whole detector under 'detector.'"),
    ],
)
def test_a_combined_file_is_explained_and_its_recipe_works(
    combine: Any,
    message: str,
    teacher_config: ConfigDict,
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meta = dict(dataset_meta=dict(classes=helpers.CLASSES))
    torch.save(dict(meta=meta, state_dict=combine(teacher[0])), tmp_path / 'combined.pth')
    refused = refusal(teacher_config, tmp_path / 'combined.pth')
    assert message in refused
    monkeypatch.chdir(tmp_path)
    exec(refused.split('a file of its own: ')[1], {})
    loaded = helpers.build(teacher_config, seed=3)
    assert load_weights(loaded, 'combined-part.pth') == helpers.CLASSES
    for key, value in teacher[0].state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


# Addresses


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """The address and the folder of a server, and a cache of downloads that is not there yet."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'no' / 'such' / 'folder'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=httpd.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    yield f'http://127.0.0.1:{httpd.server_port}', folder
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def warnings_logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    logged: list[str] = []

    def log(message: str, level: int = logging.INFO, **kwargs: Any) -> None:
        if level == logging.WARNING:
            logged.append(message)

    for module in (checkpoint_module, checkpoint_file):
        monkeypatch.setattr(module, 'print_log', log)
    return logged


def test_a_download_whose_hash_fits_its_name_is_silent(
    server: tuple[str, Path],
    warnings_logged: list[str],
    teacher_config: ConfigDict,
    teacher: Teacher,
) -> None:
    content = teacher[1].read_bytes()
    name = f'teacher-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    (server[1] / name).write_bytes(content)
    load_weights(helpers.build(teacher_config), f'{server[0]}/{name}')
    assert not warnings_logged


def test_a_download_whose_hash_does_not_fit_its_name_is_warned_of(
    server: tuple[str, Path],
    warnings_logged: list[str],
    teacher_config: ConfigDict,
    teacher: Teacher,
) -> None:
    (server[1] / 'teacher-00000000.pth').write_bytes(teacher[1].read_bytes())
    for _ in range(2):  # downloaded, then from the cache
        load_weights(helpers.build(teacher_config), f'{server[0]}/teacher-00000000.pth')
    assert len(warnings_logged) == 2
    named = re.search(
        r"SHA-256 of '(.*?)' begins with .* its name says 00000000", warnings_logged[0]
    )
    assert Path(named[1]).read_bytes() == teacher[1].read_bytes()


def test_names_that_promise_no_hash_are_taken_as_they_are(
    server: tuple[str, Path],
    warnings_logged: list[str],
    teacher_config: ConfigDict,
    teacher: Teacher,
) -> None:
    (server[1] / 'teacher-v1.0.pth').write_bytes(teacher[1].read_bytes())
    load_weights(helpers.build(teacher_config), f'{server[0]}/teacher-v1.0.pth')
    assert not warnings_logged


@pytest.mark.parametrize('fault', ['nobody listens', 'no such file', 'truncated'])
def test_an_address_that_gives_no_checkpoint_is_named(
    fault: str, server: tuple[str, Path], teacher_config: ConfigDict, teacher: Teacher
) -> None:
    address = server[0]
    if fault == 'nobody listens':
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            address = f'http://127.0.0.1:{free.getsockname()[1]}'
    elif fault == 'truncated':
        (server[1] / 'teacher.pth').write_bytes(teacher[1].read_bytes()[:5000])
    url = f'{address}/teacher.pth'
    with pytest.raises(TeacherError) as error:
        load_weights(helpers.build(teacher_config), url)
    message = str(error.value)
    assert message.startswith(f"model.teacher.checkpoint: cannot read '{url}': truncated,")
    cached = list(Path(os.environ['TORCH_HOME']).rglob('*.pth'))
    assert len(cached) == (fault == 'truncated')
    assert all(f"Delete '{path}' to have it downloaded again" in message for path in cached)


# Where the weights are, and what else the file holds


@pytest.mark.parametrize(
    'keys',
    [
        ('model',),
        ('model_state_dict',),
        ('net',),
        ('model_ema',),
        ('ema', 'module'),
        ('student',),
        ('model', 'state_dict'),
    ],
)
def test_weights_under_the_keys_of_other_trainings_are_found(
    keys: tuple[str, ...],
    teacher_config: ConfigDict,
    teacher: Teacher,
    tmp_path: Path,
    warnings_logged: list[str],
) -> None:
    content: Any = {f'module.{key}': value for key, value in state_dict(teacher[0]).items()}
    for key in reversed(keys):
        content = {key: content, 'step': torch.tensor(3)}
    content.update(epoch=3, optimizer=torch.optim.Adam(teacher[0].parameters()).state_dict())
    torch.save(content, tmp_path / 'teacher.pth')
    loaded = helpers.build(teacher_config, seed=3)
    load_weights(loaded, str(tmp_path / 'teacher.pth'))
    for key, value in teacher[0].state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not warnings_logged


def test_of_several_sets_of_weights_the_one_that_is_used_is_told(
    teacher_config: ConfigDict, tmp_path: Path, warnings_logged: list[str]
) -> None:
    model, ema = (helpers.build(teacher_config, seed=seed).state_dict() for seed in (1, 2))
    torch.save(dict(ema=dict(module=ema), model=model), tmp_path / 'teacher.pth')
    loaded = helpers.build(teacher_config, seed=3)
    load_weights(loaded, str(tmp_path / 'teacher.pth'))
    for key, value in model.items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert "the weights under ['model']" in warnings_logged[0]
    assert "not those under ['ema']['module']" in warnings_logged[0]


def test_the_recipe_for_a_part_knows_under_which_key_the_weights_are(
    teacher_config: ConfigDict,
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save(dict(model=wrapped(teacher[0])), tmp_path / 'combined.pth')
    refused = refusal(teacher_config, tmp_path / 'combined.pth')
    monkeypatch.chdir(tmp_path)
    exec(refused.split('a file of its own: ')[1], {})
    load_weights(helpers.build(teacher_config), 'combined-part.pth')


@pytest.mark.parametrize(
    ('content', 'held'),
    [
        (dict(epoch=3, best=dict(a=1)), "the keys ['best', 'epoch']"),
        (dict(model=dict()), "the keys ['model']"),
        ([torch.zeros(1)], 'a list'),
        (torch.zeros(1), 'a Tensor'),
        ({0: torch.zeros(1)}, "the keys ['0']"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(
    content: Any, held: str, teacher_config: ConfigDict, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / 'teacher.pth')
    assert f'but {held}' in refusal(teacher_config, tmp_path / 'teacher.pth')


class Own:
    """A class that only the training which wrote the file knows."""


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('named', [True, False], ids=['2.6 or later', 'below 2.6'])
def test_a_class_that_is_no_plain_data_is_named_and_its_recipe_works(
    named: bool,
    zipped: bool,
    teacher_config: ConfigDict,
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(safe_loading, 'torch_takes_named_globals', lambda: named)
    content = dict(meta=dict(own=Own()), state_dict=state_dict(teacher[0]))
    torch.save(content, tmp_path / 'own.pth', _use_new_zipfile_serialization=zipped)
    message = refusal(teacher_config, tmp_path / 'own.pth')
    assert 'holds more than weights and plain data: test_teacher_file.Own. Such' in message
    monkeypatch.chdir(tmp_path)
    exec(message.split('can be imported: ')[1], {})
    load_weights(helpers.build(teacher_config), 'own-weights.pth')


@pytest.mark.parametrize('named', [True, False], ids=['2.6 or later', 'below 2.6'])
def test_nested_dicts_and_arrays_in_the_meta_information_are_read(
    named: bool,
    teacher_config: ConfigDict,
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    helpers.read_as_newer_torch(monkeypatch, named)
    meta = ConfigDict(classes=helpers.CLASSES, groups=dict(a=1), matrix=np.eye(3, dtype='i2'))
    content = dict(meta=dict(dataset_meta=meta), state_dict=state_dict(teacher[0]))
    torch.save(content, tmp_path / 'teacher.pth')
    classes = load_weights(helpers.build(teacher_config), str(tmp_path / 'teacher.pth'))
    assert classes == helpers.CLASSES


@pytest.mark.parametrize('address', ['torchvision://resnet50', 'open-mmlab://a', 'pavi://a/b'])
def test_an_address_of_another_kind_is_refused(address: str, teacher_config: ConfigDict) -> None:
    with pytest.raises(TeacherError, match='is neither a path nor an address'):
        load_weights(helpers.build(teacher_config), address)


def test_an_object_store_is_read_as_mmengine_reads_it(
    teacher_config: ConfigDict, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store(BaseStorageBackend):
        def get(self, filepath: str) -> bytes:
            assert filepath == 's3://bucket/teacher.pth'
            return teacher[1].read_bytes()

        def get_text(self, filepath: str) -> str:
            raise NotImplementedError

    monkeypatch.setitem(backends, 'petrel', Store)
    loaded = helpers.build(teacher_config, seed=3)
    load_weights(loaded, 's3://bucket/teacher.pth')
    assert torch.equal(
        loaded.state_dict()['backbone.conv1.weight'], teacher[0].backbone.conv1.weight
    )
