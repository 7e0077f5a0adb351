"""The whole demo, as ``make demo`` calls it, with settings that take a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calkd_det.calibration import TemperatureScaling
from calkd_det.commands.demo.plan import CALKD_AS_PLAIN, EVALUATIONS, TRAININGS, Plan
from calkd_det.commands.demo.runs import read_detections, read_metrics, read_scalars

TOOL = Path(__file__).parents[3] / 'tools' / 'demo.py'
SMALL = ['--epochs', '2', '--train-images', '64', '--val-images', '16', '--calibration-images', '8']


@pytest.mark.slow
def test_the_demo_trains_reports_and_does_nothing_twice(tmp_path):
    def demo(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(TOOL), '--work-dir', 'runs', '--data', 'data', *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    first = demo(*SMALL)
    assert first.returncode == 0, first.stdout + first.stderr
    plan = Plan(tmp_path / 'runs', tmp_path / 'data', epochs=2)
    report = plan.report_dir / 'report.md'
    written = report.stat().st_mtime_ns
    assert first.stdout.rstrip().endswith('report: runs/demo/report.md')
    assert 'the same.' in report.read_text('utf-8')
    assert first.stdout.count('.mim/tools/train.py') == len(TRAININGS)
    assert first.stdout.count('.mim/tools/test.py') == len(EVALUATIONS) + 1
    assert '] epoch  1  iteration' in first.stdout
    assert first.stdout.count('tools/calibrate_teacher.py') == 1
    assert TemperatureScaling(plan.calibration).temperature > 0
    assert (plan.calibration_dir / 'reliability_distillation.png').is_file()
    for run in TRAININGS:
        assert plan.checkpoint(run).is_file()
        assert all(
            run.distilled == ('loss_kd' in entry)
            for entry in read_scalars(plan.folder(run)).values()
        )

    calkd = next(test for test in EVALUATIONS if test.name == 'calkd')
    by_map = 'coco/bbox_mAP'
    through_both = [read_metrics(plan.test_folder(test)) for test in (calkd, CALKD_AS_PLAIN)]
    assert through_both[0].get(by_map) == through_both[1].get(by_map)
    # With so little training the mAP may be zero; every single box says more.
    own, plain = (read_detections(plan.predictions(test)) for test in (calkd, CALKD_AS_PLAIN))
    for image_id, boxes in own.items():
        np.testing.assert_array_equal(boxes.xyxy, plain[image_id].xyxy)
        np.testing.assert_array_equal(boxes.scores, plain[image_id].scores)

    second = demo(*SMALL)
    assert second.returncode == 0, second.stdout + second.stderr
    assert '/tools/t' not in second.stdout
    assert 'tools/calibrate' not in second.stdout
    assert second.stdout.count('already trained') == len(TRAININGS)
    assert report.stat().st_mtime_ns > written

    other_data = demo(*SMALL[:-1], '9')
    assert other_data.returncode == 1
    assert other_data.stderr.startswith('error: ')
    assert other_data.stderr.count('\n') == 1
