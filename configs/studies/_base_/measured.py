# What the later studies have in common: the data, teachers and student of fashion.py, eight seeds,
# the calibration of the students' boxes beside mAP, and their classifier's own figures.
_base_ = './fashion.py'

ann_file = 'data/study-fashion/annotations/val.json'
evaluators = [
    dict(type='CocoMetric', ann_file=ann_file, metric='bbox'),
    dict(type='DetectionCalibration', ann_file=ann_file),
]
kd = dict(type='KDLoss', tau=1.0, loss_weight=1.0)

study = dict(
    student=dict(
        # A student whose boxes are measured is another run than one of the first studies.
        name='r18-8, boxes measured',
        cfg_options={'val_evaluator': evaluators, 'test_evaluator': evaluators},
    ),
    seeds=[0, 1, 2, 3, 4, 5, 6, 7],
    measure_students=True,
    metrics={
        'mAP': 'coco/bbox_mAP',
        'AP50': 'coco/bbox_mAP_50',
        'AP75': 'coco/bbox_mAP_75',
        'D-ECE': 'calibration/D-ECE_IoU50',
        'LaECE': 'calibration/LaECE_0',
    },
    target=0.5,
    figures=['paired'],
)
