"""A cosine schedule: do students spread less from seed to seed?

The learning rate falls along a cosine instead of in two steps. Cost: 2 cells x 4 seeds = 8 students.
"""

_base_ = './_base_/scheduled.py'

study = dict(
    name='schedules-cosine',
    title='A cosine schedule',
    student=dict(
        name='r18-8, unseen images, cosine schedule',
        cfg_options={
            'param_scheduler': [
                dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
                dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, T_max=8),
            ],
        },
    ),
)
