"""Unseen images: an over-confident teacher distilled on images that it was not trained on.

The teacher learnt 400 images by heart, the students learn from 500 others, so that the T that is
fitted on held-out images is the right one for what is distilled. Cost: an over-confident teacher and
6 cells x 4 seeds = 24 students. The weights of the last epochs are kept for
docs/evidence/spread.py.
"""

_base_ = './_base_/measured.py'

teacher = 'over-confident'
temperatures = {'T = 0.5': 0.5, 'T = 1': 1.0, 'fitted T': 'fitted', 'T = 2': 2.0, 'T = 3': 3.0}

study = dict(
    name='unseen-images',
    title='Unseen images',
    question=(
        'Does the fitted T of an over-confident teacher help on images that it has never seen?'
    ),
    primary=dict(
        of='fitted T',
        to='T = 1',
        advice=dict(
            higher='Fit T of an over-confident teacher, and distil on images that are new to it.',
            lower='Keep T = 1 even for an over-confident teacher.',
            none='Do not expect T to repair an over-confident teacher: train a better one.',
        ),
    ),
    student=_base_.unseen_student,
    keep_weights=True,
    teachers=[_base_.measured_teachers[teacher]],
    cells=[
        dict(name='alone'),
        *(
            dict(name=name, teacher=teacher, temperature=temperature, loss=_base_.kd)
            for name, temperature in temperatures.items()
        ),
    ],
    comparisons=[
        dict(of='T = 1', to='alone'),
        *(dict(of=name, to='T = 1') for name in temperatures if name != 'T = 1'),
        dict(of=['T = 2', 'T = 3'], to='T = 1', name='T of 2 to 3 − T = 1'),
    ],
    reliability=[teacher],
)
