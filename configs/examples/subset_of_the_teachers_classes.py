# Your own data, with some of COCO's classes, taught by the zoo's COCO teacher of the base config.
_base_ = __import__('calkd_det').config_path(
    'faster_rcnn/calkd_faster-rcnn_r101-r18_fpn_8xb1-ms-180k_coco.py'
)

model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))

data_root = 'data/street/'
# In the order of the annotation file's categories, which mmdet numbers labels by, and which in a
# file cut out of COCO's is COCO's. Matched by name with the teacher's classes, of which the other 77
# count as background. Where the spelling differs: model.teacher.class_names.
metainfo = dict(classes=('person', 'bicycle', 'car'))

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
