"""Across teachers: does a teacher's calibration, or its accuracy, tell how good its student gets?

Plan: 14 teachers and 15 cells x 5 seeds = 75 students. The student alone and the two teachers of
controlled.py with their T = 1 are the same runs, so after that study 12 teachers and 60 students
are left: with the seconds of controlled.py, the teachers in proportion to their images and widths
(about 3,800), 9,400 seconds of a core, 1.3 hours on two free cores.
"""

_base_ = './_base_/fashion.py'

study = dict(
    name='teachers',
    title='Across teachers: KD with T = 1',
    teachers=list(_base_.fashion_teachers.values()),
    cells=[
        dict(name='student alone'),
        *(
            dict(
                name=f'{teacher}, T = 1',
                teacher=teacher,
                temperature=1.0,
                loss=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
            )
            for teacher in _base_.fashion_teachers
        ),
    ],
    seeds=[0, 1, 2, 3, 4],
    comparisons=[
        dict(of=f'{teacher}, T = 1', to='student alone') for teacher in _base_.fashion_teachers
    ],
    figures=['across', 'paired'],
    reliability=[],
)
