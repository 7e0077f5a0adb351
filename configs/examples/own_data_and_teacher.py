# Your own COCO-format data and teacher, from mmdet's own base config.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDFasterRCNN',
    teacher=dict(
        config='work_dirs/my_teacher/my_teacher.py',
        # Classes are matched by name: any order, and the teacher may have more than the student.
        checkpoint='work_dirs/my_teacher/epoch_12.pth',
        calibrator=dict(type='TemperatureScaling', temperature=1.5),
    ),
    distillation=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
    roi_head=dict(bbox_head=dict(num_classes=3)),
)

data_root = 'data/my_data/'
# In the order of the categories of the annotation files, which mmdet numbers labels by.
metainfo = dict(classes=('cup', 'plate', 'spoon'))

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator
