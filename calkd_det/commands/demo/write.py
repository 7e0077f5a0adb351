"""Turns the files of a finished demo into a report with pictures."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from calkd_det.commands.demo.curves import plot_curves
from calkd_det.commands.demo.grid import plot_grid
from calkd_det.commands.demo.markdown import CAUTION, compose, plain_config_sentence, result_table
from calkd_det.commands.demo.plan import CALKD_AS_PLAIN, EVALUATIONS, STUDENTS, TRAININGS, Plan
from calkd_det.commands.demo.records import read_record
from calkd_det.commands.demo.runs import (
    count_images,
    read_calibration,
    read_detections,
    read_ground_truth,
    read_metrics,
    read_scalars,
)
from calkd_det.datasets.items import SPLITS
from calkd_det.errors import ConfigError

SHOWN = ('teacher', 'student', 'calkd')


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        path: the Markdown file, with its pictures beside it.
        summary: table and sentences for the terminal.
    """

    path: Path
    summary: str


def write_report(plan: Plan) -> Report:
    """Writes ``report.md`` and its pictures into ``plan.report_dir``.

    Raises:
        ConfigError: A run or a test has not ended yet, or the data set is gone.
    """
    tests = (*EVALUATIONS, CALKD_AS_PLAIN)
    records = {run.name: read_record(plan.folder(run)) for run in TRAININGS}
    for run in TRAININGS:
        if records[run.name] is None or not plan.checkpoint(run).is_file():
            raise ConfigError(
                f'{plan.folder(run)} holds no finished run of the {run.title} detector: '
                'run the demo without --report-only.'
            )
    metrics = {test.name: read_metrics(plan.test_folder(test)) for test in tests}
    curves = plot_curves({run.title: read_scalars(plan.folder(run)) for run in STUDENTS})
    detections = plot_grid(
        read_ground_truth(plan.data / 'annotations' / 'val.json'),
        plan.data / 'val',
        {
            test.title: read_detections(plan.predictions(test))
            for test in EVALUATIONS
            if test.name in SHOWN
        },
    )
    text = compose(
        metrics,
        read_calibration(plan.calibration),
        records,
        other_commands=[
            shlex.join(command)
            for command in (plan.calibrate_command(), *map(plan.test_command, tests))
        ],
        num_images={
            split: count_images(plan.data / 'annotations' / f'{split}.json') for split in SPLITS
        },
        pictures={
            'curves': 'curves.png',
            'detections': 'detections.png',
            'reliability': 'calibration/reliability_distillation.png',
        },
    )
    plan.report_dir.mkdir(parents=True, exist_ok=True)
    curves.savefig(plan.report_dir / 'curves.png')
    detections.savefig(plan.report_dir / 'detections.png')
    path = plan.report_dir / 'report.md'
    path.write_text(text, 'utf-8')
    summary = f'{result_table(metrics)}\n\n{plain_config_sentence(metrics)}\n{CAUTION}'
    return Report(path, summary)
