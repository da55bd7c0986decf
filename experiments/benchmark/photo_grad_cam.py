"""The job of `photo.py` with pytorch-grad-cam: python photo_grad_cam.py PHOTO WEIGHTS FOLDER."""

import sys

import cv2
import numpy as np
import torch
import torchvision
from matplotlib import pyplot
from PIL import Image
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors.torch import load_file

print('imports', flush=True)
photo, weights, folder = sys.argv[1:]
model = torchvision.models.squeezenet1_1()
model.load_state_dict(load_file(weights))
model.eval()
layers = [model.features[10], model.features[11], model.features[12], model.classifier[2]]
names = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta['categories']

image = Image.open(photo).convert('RGB')
small = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), np.float32)
small = small[..., ::-1] - np.float32([104, 117, 123])  # BGR, as these weights want it
inputs = torch.from_numpy(small).permute(2, 0, 1)[None]
with torch.no_grad():
    probabilities = model(inputs)[0].softmax(0)
top = probabilities.topk(5).indices.tolist()


def picture(name, methods, layers, classes):
    """Draws and writes it."""
    pairs = [(method, layer) for method in methods for layer in layers]
    width = len(pairs) + 1
    size = (2.4 * width, 3 * len(classes))
    figure, axes = pyplot.subplots(len(classes), width, squeeze=False, figsize=size)
    for line, index in zip(axes, classes, strict=True):
        line[0].imshow(image)
        line[0].set_ylabel(names[index])
        for axis, (method, layer) in zip(line[1:], pairs, strict=True):
            with method(model, [layer]) as cam:
                (raw,) = cam(inputs, targets=[ClassifierOutputTarget(index)])
            raw = cv2.resize(raw, image.size)
            axis.imshow(show_cam_on_image(np.float32(image) / 255, raw, use_rgb=True))
            axis.set_title(method.__name__)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(f'{folder}/{name}.png')
    print(name, flush=True)


picture('methods', (LayerCAM, GradCAM, HiResCAM), layers[:1], top[:1])
picture('layers', (GradCAM,), layers, top[:1])
picture('classes', (LayerCAM, GradCAM), layers[:2], top[:2])
for i in top:
    print(f'{names[i]}: {probabilities[i]:.1%}')
