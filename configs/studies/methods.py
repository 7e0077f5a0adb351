"""Methods: the student alone, KD, CalKD with T = 1.5 and with the fitted T, CalKD on DKD and MLLD.

Cost: 2 teachers and 11 cells x 5 seeds = 55 students. The student alone, KD and CalKD with T = 1.5
are runs of controlled.py, so after that study 6 cells x 5 = 30 students are left: 0.7 hours of a
core. All three studies: 13 teachers, 160 students, 4.8 hours of a core, about 2.4 hours on two.
"""

_base_ = './_base_/fashion.py'

kd = dict(type='KDLoss', tau=1.0, loss_weight=1.0)
# DKD's defaults, and MLLD's weight of docs/losses.md; neither is tuned here.
dkd = dict(type='DKDLoss', alpha=1.0, beta=0.25, tau=1.0, loss_weight=1.0)
mlld = dict(type='MLLDLoss', taus=[2.0, 3.0, 4.0, 5.0, 6.0], loss_weight=0.1)
on_kd = {
    'KD': (1.0, kd),
    'CalKD, T = 1.5': (1.5, kd),
    'CalKD, fitted T': ('fitted', kd),
}
on_others = {
    'DKD': (1.0, dkd),
    'CalKD on DKD, T = 1.5': (1.5, dkd),
    'MLLD': (1.0, mlld),
    'CalKD on MLLD, T = 1.5': (1.5, mlld),
}
# The other losses with the teacher whose calibration T changes most.
methods = {'calibrated': on_kd, 'over-confident': {**on_kd, **on_others}}
against = {
    'KD': 'student alone',
    'CalKD, T = 1.5': 'KD',
    'CalKD, fitted T': 'KD',
    'CalKD on DKD, T = 1.5': 'DKD',
    'CalKD on MLLD, T = 1.5': 'MLLD',
}

study = dict(
    name='methods',
    title='Methods',
    teachers=[_base_.fashion_teachers[teacher] for teacher in methods],
    cells=[
        dict(name='student alone'),
        *(
            dict(name=f'{name} ({teacher})', teacher=teacher, temperature=temperature, loss=loss)
            for teacher, of_teacher in methods.items()
            for name, (temperature, loss) in of_teacher.items()
        ),
    ],
    seeds=[0, 1, 2, 3, 4],
    comparisons=[
        dict(
            of=f'{name} ({teacher})',
            to=against[name] if name == 'KD' else f'{against[name]} ({teacher})',
            name=f'{name} − {"alone" if name == "KD" else against[name]} ({teacher})',
        )
        for teacher, of_teacher in methods.items()
        for name in of_teacher
        if name in against
    ],
    figures=['paired'],
    reliability=[],
)
