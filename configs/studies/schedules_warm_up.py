"""A longer warm-up: do students spread less from seed to seed?

The learning rate rises over 500 steps instead of 100. Cost: 2 cells x 4 seeds = 8 students.
"""

_base_ = './_base_/scheduled.py'

study = dict(
    name='schedules-warm-up',
    title='A longer warm-up',
    student=dict(
        name='r18-8, unseen images, longer warm-up',
        cfg_options={'param_scheduler.0.end': 500},
    ),
)
