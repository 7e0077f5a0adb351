_base_ = './gfl.py'

# Backbone and neck start from the weights of gfl_start.py, the head from random weights. The
# study sets the teacher.
start = 'work_dirs/study/gfl-start/epoch_8.pth'
model = dict(
    type='CalKDGFL',
    backbone=dict(
        init_cfg=dict(_delete_=True, type='Pretrained', checkpoint=start, prefix='backbone.')
    ),
    neck=dict(init_cfg=dict(type='Pretrained', checkpoint=start, prefix='neck.')),
)
