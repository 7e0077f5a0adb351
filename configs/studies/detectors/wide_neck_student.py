_base_ = './wide_neck.py'

# Backbone, neck and RPN start from the weights of wide_neck_start.py, the RoI head from random
# weights. The study sets the teacher.
start = 'work_dirs/study/wide-neck-start/epoch_8.pth'
model = dict(
    type='CalKDFasterRCNN',
    backbone=dict(
        init_cfg=dict(_delete_=True, type='Pretrained', checkpoint=start, prefix='backbone.')
    ),
    neck=dict(init_cfg=dict(type='Pretrained', checkpoint=start, prefix='neck.')),
    rpn_head=dict(init_cfg=dict(type='Pretrained', checkpoint=start, prefix='rpn_head.')),
)
