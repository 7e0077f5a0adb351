"""The study that the demo runs, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calkd_det.commands.study.demo.curves import plot_curves
from calkd_det.commands.study.demo.files import detect, read_ground_truth, read_scalars, same_boxes
from calkd_det.commands.study.demo.grid import choose_images, plot_grid
from calkd_det.commands.study.design import Study
from calkd_det.commands.study.jobs import CONFIG
from calkd_det.commands.study.report import PARTS, write_reports
from calkd_det.commands.study.runs import Run, expand
from calkd_det.commands.study.selection import select
from calkd_det.commands.study.settings import parse_study
from calkd_det.commands.study.state import checkpoint_of
from calkd_det.commands.study.tables import cell_table
from calkd_det.commands.study.wording import percent
from calkd_det.config import config_path
from calkd_det.errors import ConfigError

NAME = 'demo'
TEACHER = 'mini/faster-rcnn_r18-teacher_fpn_12e_mini.py'
STUDENT = 'mini/faster-rcnn_r18-student_fpn_12e_mini.py'
CALKD = 'mini/calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'
# As in configs/_base_/mini.py: what a short training has to shorten too.
EPOCHS, BATCH_SIZE, WARMUP_ITERATIONS = 12, 8, 100
# The necks of student and teacher differ in width, so a convolution stands between them.
FEATURES = dict(
    type='CWDLoss', loss_weight=1.0, num_levels=4, student_channels=16, teacher_channels=48
)

CAUTION = (
    'One seed proves nothing: with another one every figure comes out differently, by how much is '
    'not measured here. This demo shows that everything runs, not that one method wins.'
)


def demo_study(work_dir: Path, data: Path, epochs: int, num_images: Mapping[str, int]) -> Study:
    """Return the study that the demo runs: a teacher, and a student in four ways, one seed.

    Args:
        work_dir: Folder of the runs and of the report.
        data: Folder of the mini data set.
        epochs: Length of each training.
        num_images: Number of images by split.
    """
    options = _options(data, epochs, num_images['train'])
    kd = dict(type='KDLoss', tau=1.0, loss_weight=1.0)
    classes_and_features = dict(cls=kd, feat=FEATURES)
    return parse_study(
        dict(
            name=NAME,
            title='Demo: distilling on the mini data set',
            data=dict(mini=dict(out_dir=str(data), num_images=dict(num_images))),
            student=dict(name='r18-8', config=config_path(CALKD), cfg_options=options),
            teachers=[dict(name='teacher', config=config_path(TEACHER), cfg_options=options)],
            cells=[
                dict(name='student alone'),
                dict(name='KD', teacher='teacher', temperature=1.0, loss=kd),
                dict(name='CalKD', teacher='teacher', temperature=1.5, loss=kd),
                dict(
                    name='CalKD and features',
                    teacher='teacher',
                    temperature=1.5,
                    loss=classes_and_features,
                ),
            ],
            seeds=[0],
            comparisons=[
                dict(of='KD', to='student alone'),
                dict(of='CalKD', to='student alone'),
                dict(of='CalKD', to='KD'),
                dict(of='CalKD and features', to='CalKD'),
            ],
            figures=['reliability'],
            reliability=['teacher'],
            deterministic=False,
            resume=True,
            keep_weights=True,
            work_dir=str(work_dir),
            page=str(work_dir / 'report.md'),
            pictures=str(work_dir),
        )
    )


def write_demo_report(study: Study) -> str:
    """Write the report of a finished demo, and its pictures beside it.

    Returns:
        Table and sentences for the terminal.

    Raises:
        ConfigError: A run has not ended yet, or the data set is gone.
    """
    selection = select(study)
    if not selection.teachers or selection.found < selection.wanted:
        raise ConfigError(
            f'{study.work_dir} lacks finished runs: run the demo without --report-only.'
        )
    runs = {run.name: run for run in expand([study])}
    students = {name: read_scalars(runs[name].folder) for name in study.cells}
    sentence = _draw_detections(study, runs)
    plot_curves(students).savefig(study.work_dir / 'curves.png')
    study.page.write_text(_empty_page(study, sentence), 'utf-8')
    write_reports([study])
    teacher = percent(selection.teachers['teacher']['metrics']['mAP'])
    return f'{cell_table(selection)}\n\nThe teacher has an mAP of {teacher}. {sentence}\n{CAUTION}'


def _draw_detections(study: Study, runs: Mapping[str, Run]) -> str:
    """Draw detections, and tell whether CalKD's are those of the plain student's config."""
    root = study.data.held_out_images.parent
    truth = read_ground_truth(root / 'annotations' / 'val.json')
    images = {key: root / 'val' / truth.files[key] for key in choose_images(truth.files)}
    detections = {}
    for name in ('teacher', 'student alone', 'CalKD', 'CalKD and features'):
        checkpoint = checkpoint_of(runs[name])
        if checkpoint is None:
            raise ConfigError(f'{runs[name].folder} has lost its weights: remove that folder.')
        detections[name] = detect(runs[name].folder / CONFIG, checkpoint, images)
    plot_grid(truth, root / 'val', detections).savefig(study.work_dir / 'detections.png')
    plain = detect(config_path(STUDENT), checkpoint_of(runs['CalKD']), images)
    same = same_boxes(detections['CalKD'].values(), plain.values())
    return (
        f"CalKD's checkpoint was also run through the plain student's config, which knows neither "
        f'teacher nor distillation: on the {len(images)} images shown its detections are '
        f'{"exactly the same" if same else "NOT the same, which is a bug"}.'
    )


def _empty_page(study: Study, sentence: str) -> str:
    blocks = {part: f'<!-- begin {NAME} {part} -->\n<!-- end {NAME} {part} -->' for part in PARTS}
    return '\n\n'.join(
        [
            f'# {study.title}',
            'A teacher, a small student trained alone, and the same student distilled from that '
            'teacher: as it is (KD), with its logits divided by T = 1.5 (CalKD), the default of '
            'the method, whatever T was fitted, and with its feature maps beside (CWD). The '
            'students share their seed, so also their initial weights and the order of their '
            'images.',
            f'**{CAUTION}**',
            f'## Results\n\n{blocks["tables"]}',
            blocks['answer'],
            sentence,
            f"## The teacher's calibration\n\n{blocks['figures']}",
            '## Losses and teacher\n\n![Losses of the four students](curves.png)',
            '## Detections\n\nEvenly spaced validation images, chosen by their ids alone.\n\n'
            '![Detections beside the ground truth](detections.png)',
            f'## What was run\n\n{blocks["runs"]}\n',
        ]
    )


def _options(data: Path, epochs: int, train_images: int) -> dict[str, Any]:
    """Return what differs from the mini configs."""
    root = data.as_posix()
    options: dict[str, Any] = {
        f'{split}_dataloader.dataset.data_root': f'{root}/' for split in ('train', 'val', 'test')
    }
    options |= {
        f'{split}_evaluator.ann_file': f'{root}/annotations/val.json' for split in ('val', 'test')
    }
    if epochs != EPOCHS:
        # The published steps at 2/3 and 8/9.
        steps = [max(1, round(epochs * 2 / 3)), max(1, round(epochs * 8 / 9))]
        options |= {
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': epochs,
            'param_scheduler.1.end': epochs,
            'param_scheduler.1.milestones': steps,
        }
    iterations = epochs * -(-train_images // BATCH_SIZE)
    if iterations < 4 * WARMUP_ITERATIONS:
        options['param_scheduler.0.end'] = max(1, iterations // 4)
    return options
