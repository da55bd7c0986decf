r"""Segmentation from image labels on PASCAL VOC 2012, with the recipes of the literature.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/voc2012.py:plain --workdir DIR

DATA/VOC2012 is the folder of VOCdevkit; put the 10,582 names of SBD's list in
ImageSets/Segmentation/train_aug.txt and their label maps, which no loss reads, in
SegmentationClassAug; `--config.train.split=train` does without them.
The variant is a name of VARIANTS: `plain` is the classifier whose CAM IRN starts from, `bas_wsss`
that of BAS; `irn`, `segmenter` (DeepLabV2) and `mars` (DeepLabV3+) learn from label maps,
`--config.train.options.labels=FOLDER`: as they stand here from the true ones. The networks start
from torchvision's weights, `--config.network.weights=FILE` of ResNet-50 or, for the last two,
ResNet-101; but `irn` from the workdir of `plain`, `--config.train.init_from=DIR`: it trains no
classifier, and the CAM of that one, after a walk of 2^8 steps to the boundaries, is its seeds.

IRN's classifier: SGD at 0.1, poly, 5 epochs in batches of 16, long sides of 320 to 640 pixels,
crops of 512. BAS: 0.005, 10 epochs, 512 pixels, crops of 448. New layers 10 times as fast, momentum
0.9 and decay 1e-4 in both. IRN's branches: 0.1, 3 epochs. Seeds of four scales and their mirror
images, rectified and summed; IRN's boundaries are averaged over all of them here, over the image
and its mirror image alone by the authors. Of DeepLab's training the papers say "conventional";
0.007, poly, decay 5e-4, crops of 512 and, for the teacher of MARS, 0.999 are chosen here.

Published mIoU, not reproduced here: BAS seeds 57.7 (train), with IRN 71.1, DeepLabV2 69.6 (val) and
69.9 (test; README of the extension); ESOL, DeepLabV2, 69.9 and 69.3 (table of LPCAM, CVPR 2023);
MARS, DeepLabV3+, 77.7 and 77.2 (its abstract).
Not measured here.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError, default_config
from wsol_jax.names import unknown_name

# Variant -> train.method and its options, rate, epochs.
_METHODS = {
    'plain': ('', {}, 0.1, 5),
    'bas_wsss': ('bas_wsss', {}, 0.005, 10),
    'irn': (
        'irn',
        {
            'labels': 'truth',
            'layers': ('stage1/stem', 'stage1', 'stage2', 'stage3', 'stage4'),
        },
        0.1,
        3,
    ),
    'segmenter': ('segmenter', {'labels': 'truth', 'head': 'v2'}, 0.007, 30),
    'mars': ('mars', {'labels': 'truth', 'crf': True}, 0.007, 30),
}
VARIANTS = tuple(_METHODS)


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    method, options, rate, epochs = _METHODS[variant]
    segments = variant in ('segmenter', 'mars')
    config = default_config()
    config.task = 'segmentation'
    config.data.source = 'voc'
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/VOC2012'
    config.network.name = 'resnet101' if segments else 'resnet50'
    config.network.options = {'output_stride': 16, 'dilated': segments}
    config.network.input_size = 448 if variant == 'bas_wsss' else 512
    config.augment.crop = 'short_side' if variant == 'bas_wsss' else 'scale'
    config.augment.margin = 64 if variant == 'bas_wsss' else 0
    config.augment.scale = (0.5, 1.5) if segments else (0.625, 1.25)
    config.train.method, config.train.options = method, options
    config.train.loss = 'sigmoid'
    config.train.optimizer, config.train.learning_rate = 'sgd', rate
    config.train.schedule, config.train.warmup = 'poly', 0.0
    config.train.head = 1.0 if variant == 'irn' else 10.0
    config.train.weight_decay = 5e-4 if segments else 1e-4
    config.train.split = 'train_aug'
    config.train.epochs = epochs
    config.train.batch_size = 16
    config.train.ema = 0.999 if variant == 'mars' else 0.0
    config.localize.splits = ('train_aug', 'val')
    own = 'bas_wsss' if variant == 'bas_wsss' else 'cam'
    config.localize.methods = ('segmenter' if segments else own,)
    config.localize.layers = ('stage4',)
    config.localize.scales = (0.5, 1.0, 1.5, 2.0)
    config.localize.flip = True
    config.evaluate.threshold_step = 0.02
    config.segmentation.walk = 8 if variant == 'irn' else 0
    return config
