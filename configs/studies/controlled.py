"""Controlled: a teacher's logits divided by T. Its accuracy stays, its calibration alone changes.

Plan: 2 teachers and 15 cells x 5 seeds = 75 students, 70 of them distilled. Measured in seconds of one
core of a 2-core x86-64 machine: a teacher of 2,000 images x 8 epochs 371, a distilled student 93, the
student alone 76; other machines differ, and with other work on it the same machine took 946 and 226
seconds of wall-clock time for the first two. Together 2 x 371 + 70 x 93 + 5 x 76 = 7,600 seconds of a
core, 1.1 hours on two free ones.
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
