"""A cosine schedule: do students spread less from seed to seed? For docs/evidence/spread.py.

Two cells of unseen_images.py, whose learning rate falls along a cosine instead of in two steps. Not
planned to tell a difference: its spread is what is asked for. Cost: 2 cells x 4 seeds = 8 students.
"""

_base_ = './_base_/measured.py'

teacher = 'over-confident'

study = dict(
    name='schedules-cosine',
    title='A cosine schedule',
    page='work_dirs/study/schedules.md',
    results='docs/evidence/schedules.jsonl',
    student=dict(
        name='r18-8, unseen images, cosine schedule',
        cfg_options={
            **_base_.unseen_student['cfg_options'],
            'param_scheduler': [
                dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
                dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, T_max=8),
            ],
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
