"""A longer warm-up: do students spread less from seed to seed? For docs/evidence/spread.py.

Two cells of unseen_images.py, whose learning rate rises over 500 steps instead of 100. Not planned to
tell a difference: its spread is what is asked for. Cost: 2 cells x 4 seeds = 8 students.
"""

_base_ = './_base_/measured.py'

teacher = 'over-confident'

study = dict(
    name='schedules-warm-up',
    title='A longer warm-up',
    page='work_dirs/study/schedules.md',
    results='docs/evidence/schedules.jsonl',
    student=dict(
        name='r18-8, unseen images, longer warm-up',
        cfg_options={
            **_base_.unseen_student['cfg_options'],
            'param_scheduler.0.end': 500,
        },
    ),
    teachers=[_base_.measured_teachers[teacher]],
    cells=[
        dict(name='T = 1', teacher=teacher, temperature=1.0, loss=_base_.kd),
        dict(name='fitted T', teacher=teacher, temperature='fitted', loss=_base_.kd),
    ],
    comparisons=[dict(of='fitted T', to='T = 1')],
    measure_students=False,
)
