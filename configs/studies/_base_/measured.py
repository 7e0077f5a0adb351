# What the later studies have in common: the data, teachers and student of fashion.py, four seeds,
# the calibration of the students' boxes beside mAP, and their classifier's own figures. They were
# planned with eight seeds; four were left for the time before any of their runs.
_base_ = './fashion.py'

ann_file = 'data/study-fashion/annotations/val.json'
evaluators = [
    dict(type='CocoMetric', ann_file=ann_file, metric='bbox'),
    dict(type='DetectionCalibration', ann_file=ann_file),
]
# Trained again, by another seed: the weights of those that fashion.py names are gone.
measured_teachers = {
    name: dict(_base_.fashion_teachers[name], seed=1) for name in ('calibrated', 'over-confident')
}
kd = dict(type='KDLoss', tau=1.0, loss_weight=1.0)
# It learns from images that the over-confident teacher has not seen, and keeps the weights of its
# last three epochs beside the checkpoint, for docs/evidence/spread.py.
keep = dict(
    type='CheckpointHook',
    interval=1,
    save_begin=6,
    save_optimizer=False,
    save_param_scheduler=False,
    filename_tmpl='kept_{}.pth',
)
unseen_student = dict(
    name='r18-8, unseen images, boxes measured',
    cfg_options={
        'train_dataloader.dataset.indices': list(range(1000, 1500)),
        'custom_hooks': [keep],
    },
)

study = dict(
    student=dict(
        # A student whose boxes are measured is another run than one of the first studies.
        name='r18-8, boxes measured',
        cfg_options={'val_evaluator': evaluators, 'test_evaluator': evaluators},
    ),
    seeds=[0, 1, 2, 3],
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
