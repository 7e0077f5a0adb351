# What the studies of other schedules have in common: two cells of unseen_images.py. They were not
# planned to tell a difference: docs/evidence/spread.py asks for their spread.
_base_ = './measured.py'

teacher = 'over-confident'

study = dict(
    page='work_dirs/study/schedules.md',
    results='docs/evidence/schedules.jsonl',
    student=dict(cfg_options=_base_.unseen_student['cfg_options']),
    teachers=[_base_.measured_teachers[teacher]],
    cells=[
        dict(name='T = 1', teacher=teacher, temperature=1.0, loss=_base_.kd),
        dict(name='fitted T', teacher=teacher, temperature='fitted', loss=_base_.kd),
    ],
    comparisons=[dict(of='fitted T', to='T = 1')],
    measure_students=False,
)
