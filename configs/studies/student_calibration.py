"""The student's own calibration: does a calibrated teacher hand it on?

One teacher, its logits divided by T: its accuracy stays, its confidence is right, too high or too
low. Cost: two teachers and 7 cells x 4 seeds = 28 students.
"""

_base_ = './_base_/measured.py'

temperatures = {
    'calibrated': {'T = 0.33': 0.33, 'T = 1': 1.0, 'T = 3': 3.0},
    'over-confident': {'T = 1': 1.0, 'fitted T': 'fitted', 'T = 3': 3.0},
}

study = dict(
    name='student-calibration',
    title="The student's own calibration",
    question=(
        'Does a calibrated teacher hand its calibration on to the boxes of its student, even where '
        'mAP does not move?'
    ),
    primary=dict(
        of='calibrated, T = 1',
        to=['calibrated, T = 0.33', 'calibrated, T = 3'],
        name='calibrated − miscalibrated either way',
        metric='D-ECE',
        advice=dict(
            higher='Calibrate the student itself after training, whatever its teacher.',
            lower='Calibrate the teacher where the scores of the student are read as probabilities.',
            none='Calibrate the student itself after training, whatever its teacher.',
        ),
    ),
    teachers=[_base_.measured_teachers[name] for name in temperatures],
    cells=[
        dict(name='alone'),
        *(
            dict(name=f'{teacher}, {name}', teacher=teacher, temperature=value, loss=_base_.kd)
            for teacher, by_name in temperatures.items()
            for name, value in by_name.items()
        ),
    ],
    comparisons=[
        *(
            dict(of=f'{teacher}, {name}', to=f'{teacher}, T = 1')
            for teacher, by_name in temperatures.items()
            for name in by_name
            if name != 'T = 1'
        ),
        *(dict(of=f'{teacher}, T = 1', to='alone') for teacher in temperatures),
    ],
    reliability=['calibrated', 'over-confident'],
)
