"""The doctor: what it says of healthy and of sick configs, its exit codes, and its figures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import helpers
import pytest
import torch
from healthy import DIGITS, NUM_VAL, TEACHER
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from calkd_det import config_path
from calkd_det.commands.doctor.finding import Finding, verdict
from calkd_det.commands.doctor.quality import check_map, evaluate_boxes, read_validation_images
from calkd_det.commands.doctor.teacher import check_classes, check_inputs
from calkd_det.commands.doctor.versions import CLASSIC, CURRENT, ONEDL, check_versions
from calkd_det.detectors.judgement import Judgement
from calkd_det.measurement.held_out import HeldOutData, sha256_of
from calkd_det.teachers.class_map import match_classes

ROOT = Path(__file__).resolve().parents[3]
STUDENT = 'mini/faster-rcnn_r18-student_fpn_12e_mini.py'
CALKD = 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    return helpers.load_tool('doctor')


@pytest.fixture
def doctor(tool: ModuleType, work: Path, capsys: pytest.CaptureFixture) -> Doctor:
    """Runs the tool; returns its exit code and its output without the line breaks."""

    def run(*options: str, config: str = CALKD) -> tuple[int, str]:
        cfg_options = ['model.teacher.checkpoint=teacher.pth'] if config == CALKD else []
        cfg_options += ['train_dataloader.batch_size=2', *options]
        capsys.readouterr()
        code = tool.main([config_path(config), '--device=cpu', '--cfg-options', *cfg_options])
        return code, ' '.join(capsys.readouterr().out.split())

    return run


@pytest.fixture
def good_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the teacher of random weights pass for one that was trained."""
    judgement = Judgement({}, (), 0.8, 0.8, blind=False, sees=True, skill=0.78, renamed_skill=0.78)
    package = 'calkd_det.commands.doctor'
    # By sys.modules: the package's examine is its function.
    module = sys.modules[f'{package}.examine']
    monkeypatch.setattr(module, 'judge_samples', lambda *args: judgement)
    monkeypatch.setattr(f'{package}.quality.evaluate_boxes', lambda *args: (0.4, 0.5))


def files(root: Path) -> dict[str, str]:
    return {str(path): sha256_of(path) for path in root.rglob('*') if path.is_file()}


def test_a_config_that_is_ready(doctor: Doctor, work: Path, good_teacher: None) -> None:
    before = files(work)
    code, text = doctor()
    assert code == 0
    assert files(work) == before
    assert 'ok training data 8 images' in text
    assert 'CalKDFasterRCNN with loss_kd = KDLoss(tau=1.0, loss_weight=1.0)' in text
    assert "'teacher.pth' fills every weight of the FasterRCNN" in text
    assert 'ok classes the same 10, in the same order' in text
    assert 'ok images normalised alike' in text
    assert 'ok BatchNorm 20 layers folded' in text
    assert 'ok calibrator TemperatureScaling, T = 1.5' in text
    assert re.search(r'ok memory \d+\.\d MiB of weights', text)
    assert 'ok evidence it predicts 0.80 of the foreground samples as their class' in text
    assert f'ok teacher mAP 0.400 (COCO, bbox) on {NUM_VAL} validation' in text
    assert re.search(r'ok calibration ECE [\d.]+ % as it is, [\d.]+ % with the config', text)
    assert 'ok training step a batch of 2 images, every loss finite: loss_rpn_cls' in text
    assert re.search(r'ok distillation loss_kd [\d.]+, teacher_confidence 0\.\d+', text)
    assert re.search(r'ok cost the teacher adds \d+ % to the time of a step', text)
    assert 'Do not distil' not in text
    assert re.search(r'\bready to train: no errors, no warnings$', text)


def test_an_untrained_teacher_is_not_ready(doctor: Doctor) -> None:
    code, text = doctor()
    assert code == 1
    assert f'error teacher mAP NEAR ZERO, 0.000 (COCO, bbox) on {NUM_VAL} validation' in text
    assert 'Its boxes do not find the objects' in text
    assert 'Do not distil before that is clear' in text
    assert re.search(r'not ready to train: \d errors?, \d warnings?$', text)


def test_a_missing_teacher_leaves_the_other_checks(doctor: Doctor) -> None:
    code, text = doctor('model.teacher.checkpoint=none.pth')
    assert code == 1
    assert 'calkd_det' in text
    assert "error teacher model.teacher.checkpoint: there is no file 'none.pth'" in text
    assert 'ok training step' in text
    assert 'cost' not in text
    assert text.endswith('not ready to train: 1 error, no warnings')


def test_missing_data_leave_the_teacher(doctor: Doctor, work: Path) -> None:
    (work / 'data/mini/annotations/train.json').unlink()
    (work / 'data/mini/annotations/val.json').unlink()
    code, text = doctor()
    assert code == 1
    assert 'error training data FileNotFoundError' in text
    assert 'ok classes the same 10, in the same order' in text
    assert "error validation data there is no annotation file 'data/mini/annotations/val" in text
    assert 'not ready to train: 2 errors' in text


def test_classes_that_the_teacher_lacks(doctor: Doctor, work: Path) -> None:
    content = torch.load('teacher.pth')
    content['meta']['dataset_meta']['classes'] = tuple('abcdefghij')
    torch.save(content, 'teacher.pth')
    code, text = doctor()
    assert code == 1
    assert "error teacher model.teacher does not know 10 of the student's classes: zero" in text


def test_a_warning_of_the_build_is_a_finding(
    doctor: Doctor, work: Path, good_teacher: None
) -> None:
    torch.save(torch.load('teacher.pth')['state_dict'], 'teacher.pth')
    base = f"_base_ = __import__('calkd_det').config_path('{TEACHER}')"
    Path('no_data.py').write_text(f'{base}\ntrain_dataloader = dict(_delete_=True)\n')
    code, text = doctor('model.teacher.config=no_data.py')
    assert code == 0
    assert 'warning teacher The class names of the teacher are unknown' in text
    assert 'ok classes not compared by name' in text


def test_permuted_classes_change_no_figure(doctor: Doctor, work: Path) -> None:
    _, expected = doctor()
    content = torch.load('teacher.pth')
    order = list(range(9, -1, -1))
    for key, value in content['state_dict'].items():
        if 'fc_cls' in key:
            content['state_dict'][key] = value[[*order, 10]]
        elif 'fc_reg' in key:
            content['state_dict'][key] = value.unflatten(0, (10, 4))[order].flatten(0, 1)
    content['meta']['dataset_meta']['classes'] = DIGITS[::-1]
    torch.save(content, 'teacher.pth')
    _, text = doctor()
    assert 'ok classes the same 10 in another order, matched by name' in text
    for title in ('teacher mAP', 'calibration ECE', 'distillation loss_kd'):
        (line,) = re.findall(rf'{title} .*? (?:ok|warning) ', expected)
        assert line in text


def test_a_temperature_of_another_teacher(doctor: Doctor, work: Path, good_teacher: None) -> None:
    def about(checkpoint: str, sha256: str | None, **more: object) -> str:
        teacher = {'checkpoint': checkpoint, 'checkpoint_sha256': sha256}
        Path('t.json').write_text(json.dumps({'temperature': 2.0, 'teacher': teacher, **more}))
        code, text = doctor('model.teacher.calibrator.temperature=t.json')
        assert code == 0
        return text

    own = sha256_of(Path('teacher.pth'))
    text = about('teacher.pth', own)
    assert "ok calibrator TemperatureScaling, T = 2, from 't.json'; fitted for this very" in text
    text = about('other.pth', '0' * 64, at_bound=True)
    assert "warning calibrator the fit of 't.json' stopped at a bound" in text
    assert "it was fitted for another teacher, 'other.pth'" in text
    assert 'the file does not say which teacher' in about('teacher.pth', None)


def test_a_plain_config(doctor: Doctor) -> None:
    code, text = doctor(config=STUDENT)
    assert code == 1
    assert 'error distillation this is no CalKD config: model.type is FasterRCNN' in text
    assert 'ok training step' in text


def test_distillation_that_is_off(doctor: Doctor) -> None:
    code, text = doctor(
        'model.distillation.loss_weight=0.0', 'custom_imports.imports=[my_own_modules]'
    )
    assert code == 0
    assert 'warning distillation off: model.distillation has loss_weight=0' in text
    assert 'warning custom_imports does not name calkd_det' in text
    assert 'ready to train: no errors, 2 warnings' in text


def test_a_wrong_key_is_told_by_its_sentence(doctor: Doctor) -> None:
    code, text = doctor('model.distillation.tua=2.0')
    assert code == 1
    assert "error model model.distillation has no key 'tua': did you mean 'tau'?" in text


def test_losses_that_are_not_finite(doctor: Doctor) -> None:
    code, text = doctor('model.data_preprocessor.std=[1e-40,1e-40,1e-40]')
    assert code == 1
    assert re.search(r'error training step not finite: .*loss\w* nan', text)


@pytest.mark.parametrize(
    'argv', [[], ['none.py'], ['CONFIG', '--images=0'], ['CONFIG', '--device=abacus']]
)
def test_wrong_arguments(tool: ModuleType, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main([arg.replace('CONFIG', config_path(CALKD)) for arg in argv])
    assert stop.value.code == 2


class Oracle(nn.Module):
    """A teacher that finds every object, and names its class by a table."""

    def __init__(self, names: Tensor) -> None:
        super().__init__()
        self.names = names

    def test_step(self, batch: dict) -> list:
        (sample,) = batch['data_samples']
        objects = sample.gt_instances
        factor = objects.bboxes.tensor.new_tensor(sample.scale_factor).repeat(2)
        sample.pred_instances = InstanceData(
            bboxes=objects.bboxes.tensor / factor,
            labels=self.names[objects.labels],
            scores=torch.ones(len(objects)),
        )
        return [sample]


@pytest.fixture
def images(work: Path) -> HeldOutData:
    cfg = Config.fromfile(config_path(CALKD))
    return read_validation_images(cfg, NUM_VAL - 2, len(DIGITS), DIGITS)


def test_map_is_of_the_images_looked_at(images: HeldOutData) -> None:
    assert len(images.dataset) == NUM_VAL - 2
    assert evaluate_boxes(Oracle(torch.arange(10)), images, None) == (1.0, 1.0)
    # A teacher that knows 3 more classes, in another order.
    columns = torch.randperm(13)[:10]
    assert evaluate_boxes(Oracle(columns), images, columns) == (1.0, 1.0)
    missing = torch.full_like(columns, 99)
    assert evaluate_boxes(Oracle(missing), images, columns) == (0.0, 0.0)


def test_mixed_up_classes_are_told_from_wrong_boxes(images: HeldOutData) -> None:
    shifted = Oracle((torch.arange(10) + 5) % 10)
    (finding,) = check_map(shifted, images, None)
    assert finding.mark == 'error'
    assert 'Its boxes find the objects (AR 1.000 whatever the class)' in finding.text
    assert finding.text.endswith('Do not distil before that is clear')
    (finding,) = check_map(shifted, images, None, True)
    assert finding.mark == 'warning'
    assert 'Do not distil' not in finding.text
    (finding,) = check_map(Oracle(torch.arange(10)), images, None)
    assert finding.mark == 'ok'


def test_classes_beyond_the_students() -> None:
    teacher = ('cow', *helpers.CLASSES, 'hen')
    class_map = match_classes(helpers.CLASSES, teacher, 3, 5)
    finding = check_classes(helpers.CLASSES, teacher, class_map)
    assert finding.mark == 'ok'
    assert "3 of the teacher's 5" in finding.text
    assert finding.text.endswith('2 of its own count as background: cow, hen')


def test_what_differs_in_the_images() -> None:
    student = helpers.build(helpers.detector_config()).data_preprocessor
    cfg = helpers.detector_config()
    cfg.data_preprocessor.update(mean=[1.0, 2.0, 3.0], bgr_to_rgb=False)
    finding = check_inputs(student, helpers.build(cfg).data_preprocessor)
    assert finding.mark == 'ok'
    assert 'to (1, 2, 3); channels flipped to as loaded' in finding.text


def test_the_tested_versions_are_those_of_make_env() -> None:
    lines = (ROOT / 'requirements' / 'tested.txt').read_text().splitlines()
    makefile = (ROOT / 'Makefile').read_text()
    (python,) = re.findall(r'^PYTHON \?= python(\S+)', makefile, re.M)
    for name, tested in (('current', CURRENT), ('classic', CLASSIC), ('onedl', ONEDL)):
        stack = makefile.split(f'ifeq ($(STACK),{name})')[1].split('\nelse')[0]
        own = ROOT / 'requirements' / f'{name}.txt'
        found = [*lines, *(own.read_text().splitlines() if own.is_file() else ())]
        found += re.findall(r'(?:\?=| ) ?([\w-]+==\S+)', stack)
        found = [line.replace('mmdetection', 'mmdet').removeprefix('onedl-') for line in found]
        pinned = dict(line.split('==') for line in found if '==' in line and line[0] != '#')
        assert {**pinned, 'python': python}.items() >= tested.items()


@pytest.mark.parametrize('tested', [CURRENT, CLASSIC, ONEDL], ids=['current', 'classic', 'onedl'])
def test_other_versions_are_a_warning(tested: dict[str, str]) -> None:
    same = {**tested, 'python': '3.11.9', 'torch': f'{tested["torch"]}+cu130'}
    assert [finding.mark for finding in check_versions(same)] == ['ok', 'ok']
    *_, finding = check_versions({**same, 'mmcv': '2.1.1', 'python': '3.1'})
    assert finding.mark == 'warning'
    assert f'python 3.1 (tested: 3.11), mmcv 2.1.1 (tested: {tested["mmcv"]})' in finding.text


def test_the_verdict_counts() -> None:
    ok, warning, error = (Finding(mark, '', '') for mark in ('ok', 'warning', 'error'))
    assert verdict([ok, warning]) == 'ready to train: no errors, 1 warning'
    assert verdict([error, warning, error]) == 'not ready to train: 2 errors, 1 warning'
