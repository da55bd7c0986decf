r"""DGL's entry to the LID challenge 2020, track 3: masks of ILSVRC images, InceptionV3 at 324 px.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/lid.py --workdir DIR

DATA/lid is in the layout of wsolevaluation: images/, class_names.txt, the masks' PNGs and metadata/
with train (that of ILSVRC: 1,281,167 images, no masks) and val (23,151 images of ILSVRC's val).
Weights as for configs/ilsvrc.py, yours to supply. With a network that is trained already:

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/lid.py --workdir DIR \
        --config.stages="('localize','evaluate','report')" --config.network.weights=FILE

The recipe is that of configs/ilsvrc.py; images are warped to 356 x 356, cropped to 324 x 324 at
random. Maps of the predicted class at two branches of Mixed_6e, fused, over four scales, closed.
The slides name neither the class, the fusion, the scales nor the kernel: these are our choice.
Without scales: --config.localize.scales="(1.0,)". Without closing: --config.evaluate.closing=0.

Published mIoU of DGL on val (slides of the challenge): 58.23 at one scale without closing, 61.46
with several scales, 62.22 with closing too. We take it for the peak over thresholds of the IoU
averaged over images, PeakIoU here; PeakPooledIoU is the other reading.
Not measured here: anything; neither the masks nor a network of this size trained to the end.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import ilsvrc


def get_config() -> ConfigDict:
    """The experiment."""
    config = ilsvrc.get_config('inception_v3')
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/lid'
    config.network.input_size = 324
    config.localize.methods = ('dgl',)
    config.localize.layers = ('Mixed_6e/Branch_1+Mixed_6e/Branch_2',)
    config.localize.classes = 'top1'
    config.localize.splits = ('val',)
    config.localize.batch_size = 8  # the largest scale has 486 px
    config.localize.scales = (0.75, 1.0, 1.25, 1.5)
    config.evaluate.size = 324
    config.evaluate.closing = 21
    return config
