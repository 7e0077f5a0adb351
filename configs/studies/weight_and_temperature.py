"""Weight and T: is the weight the lever, and does T count by the teacher's Brier score?

A student whose target is (y + λ p) / (1 + λ), y the label and p the teacher's scores, is closest to
the truth where p is, by the Brier score on the images that are distilled, and T enters through that
alone; the more so, the larger λ is. So the images are those that the teacher has not seen
(unseen_images.py), where its held-out Brier score is the right one. The control standardises logits,
so that T cancels: its two cells must not differ. The advice said "upwards from 1" before the runs,
which did not show more at 3 than at 1. Cost: the over-confident teacher of
unseen_images.py and 12 cells x 4 seeds = 48 students, 16 of which are runs of unseen_images.py.
"""

_base_ = './_base_/measured.py'

teacher = 'over-confident'
weights = (0.3, 1.0, 3.0)
temperatures = {'T = 1': 1.0, 'fitted T': 'fitted', 'T = 3': 3.0}

study = dict(
    name='weight-and-temperature',
    title='Weight and T',
    question='Is the weight of the loss a stronger lever than T?',
    primary=dict(
        of=[f'λ = 3, {name}' for name in temperatures],
        to=[f'λ = 0.3, {name}' for name in temperatures],
        name='λ = 3 − λ = 0.3',
        advice=dict(
            higher='Tune the weight before T; from 1 down it costs.',
            lower='Tune the weight before T, downwards from 1.',
            none='Leave the weight at 1.',
        ),
    ),
    student=_base_.unseen_student,
    teachers=[_base_.measured_teachers[teacher]],
    cells=[
        dict(name='alone'),
        *(
            dict(
                name=f'λ = {weight:g}, {name}',
                teacher=teacher,
                temperature=temperature,
                loss=dict(type='KDLoss', tau=1.0, loss_weight=weight),
            )
            for weight in weights
            for name, temperature in temperatures.items()
        ),
        *(
            dict(
                name=f'control, {name}',
                teacher=teacher,
                temperature=temperatures[name],
                loss=dict(type='LogitStandardizationKDLoss'),
            )
            for name in ('T = 1', 'T = 3')
        ),
    ],
    comparisons=[
        *(dict(of=f'λ = {weight:g}, T = 1', to='alone') for weight in weights),
        *(
            dict(of=f'λ = {weight:g}, {name}', to=f'λ = {weight:g}, T = 1')
            for weight in weights
            for name in temperatures
            if name != 'T = 1'
        ),
        dict(of='control, T = 3', to='control, T = 1'),
        dict(of='control, T = 1', to='λ = 1, T = 1'),
    ],
    reliability=[teacher],
)
