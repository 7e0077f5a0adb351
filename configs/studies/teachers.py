"""Across teachers: does a teacher's calibration, or its accuracy, tell how good its student gets?

Cost: 13 teachers and 14 cells x 5 seeds = 70 students. The student alone and the two teachers of
controlled.py with their T = 1 are the same runs, so after that study 11 teachers and 55 students
are left: with the seconds that docs/evidence.md tells, 2.1 hours of a core, 1.1 hours on two.
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
