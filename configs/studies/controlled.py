"""Controlled: a teacher's logits divided by T. Its accuracy stays, its calibration alone changes.

Cost: 2 teachers and 15 cells x 5 seeds = 75 students. Run two at a time on two cores of an x86-64
machine, in part beside other work, a teacher took 362 seconds on average and a student 85: 2.0 hours
of a core, 1 hour on two. docs/evidence.md has the figures of the runs.
"""

_base_ = './_base_/fashion.py'

chosen = ('calibrated', 'over-confident')
temperatures = (0.33, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

study = dict(
    name='controlled',
    title='Controlled: only T changes',
    teachers=[_base_.fashion_teachers[name] for name in chosen],
    cells=[
        dict(name='student alone'),
        *(
            dict(
                name=f'{teacher}, T = {T:g}',
                teacher=teacher,
                temperature=T,
                loss=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
            )
            for teacher in chosen
            for T in temperatures
        ),
    ],
    seeds=[0, 1, 2, 3, 4],
    comparisons=[
        dict(
            of=[f'{teacher}, T = {T:g}' for teacher in chosen for T in (1.5, 2.0, 3.0)],
            to=[f'{teacher}, T = 1' for teacher in chosen],
            name='both teachers: T of 1.5 to 3 − T = 1',
        ),
        *(
            dict(
                of=[f'{teacher}, T = {T:g}' for T in (1.5, 2.0, 3.0)],
                to=f'{teacher}, T = 1',
                name=f'{teacher}: T of 1.5 to 3 − T = 1',
            )
            for teacher in chosen
        ),
        *(
            dict(of=f'{teacher}, T = {T:g}', to=f'{teacher}, T = 1')
            for teacher in chosen
            for T in temperatures
            if T != 1
        ),
    ],
    figures=['temperature', 'paired', 'reliability'],
    reliability=['calibrated', 'over-confident'],
)
