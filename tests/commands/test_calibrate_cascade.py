"""The calibration tool on a small cascade: one T for all stages, and each stage beside it."""

from __future__ import annotations

import json
from pathlib import Path

import helpers
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from calkd_det import config_path
from calkd_det.datasets.mini import write_mini_dataset

TEACHER = 'mini/cascade-rcnn_r18-student_fpn_12e_mini.py'
TOOL = Path(__file__).parents[2] / 'tools' / 'calibrate_teacher.py'


def test_the_report_of_a_cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_mini_dataset(
        'data/mini', num_images=dict(train=1, calibration=6, val=1), image_size=96, seed=1
    )
    cfg = Config.fromfile(config_path(TEACHER))
    torch.manual_seed(0)
    detector = MODELS.build(cfg.model)
    with torch.no_grad():
        for stage, head in enumerate(detector.roi_head.bbox_head):
            head.fc_cls.bias[-1] = 2.0 + stage  # confident of the background, the later the more
    torch.save(dict(state_dict=detector.state_dict()), 'teacher.pth')

    tool = helpers.load_tool('calibrate_teacher')
    data = ['--ann=data/mini/annotations/calibration.json', '--images=data/mini/calibration']
    options = ['--out=out', '--workers=0', '--batch-size=2']
    assert tool.main([config_path(TEACHER), 'teacher.pth', *data, *options]) == 0

    found = json.loads(Path('out/temperature.json').read_text())
    stages = {f's{stage}': found['comparison'][f's{stage}'] for stage in range(3)}
    assert found['comparison'].keys() == stages.keys()
    assert found['num_samples'] == sum(stage['num_samples'] for stage in stages.values())
    temperatures = [stage['temperature'] for stage in stages.values()]
    assert min(temperatures) <= found['temperature'] <= max(temperatures)
    report = Path('out/report.md').read_text()
    for stage in range(3):
        assert f'## For comparison: RoIs of stage {stage}\n\nThese are among the' in report
        assert f'](reliability_s{stage}.png)' in report
        assert Path(f'out/reliability_s{stage}.png').is_file()
