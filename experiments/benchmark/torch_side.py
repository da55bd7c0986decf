"""torch's side of `libraries.py`, for an environment with torch, torchvision and grad-cam.

    python torch_side.py NETWORK WEIGHTS

Writes random weights of a torchvision network to WEIGHTS and a line with the versions; then each
line of its input asks for something, and gets a line with its seconds. Nothing of this project is
imported.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from pytorch_grad_cam import LayerCAM
from safetensors.torch import save_file


def forward(model, images, layers):
    """The logits, as fast as torch has them on a CPU."""
    del layers
    with torch.inference_mode():
        return model(images)


def each(model, images, layers):
    """[L,B,H,W], the maps of each layer: a call for each."""
    found = []
    for layer in layers:
        with LayerCAM(model, [model.get_submodule(layer)]) as cam:
            found.append(cam(images, targets=None))
    return np.stack(found)


def mean(model, images, layers):
    """[B,H,W], the mean of the maps of all layers: one call."""
    with LayerCAM(model, [model.get_submodule(layer) for layer in layers]) as cam:
        return cam(images, targets=None)


def answer(model, request):
    """Runs what is asked for; with 'save' the result goes to a file beside the inputs."""
    inputs = Path(request['inputs'])
    images = torch.from_numpy(np.load(inputs)).permute(0, 3, 1, 2)  # channels last, as they lie
    function = {'forward': forward, 'each': each, 'mean': mean}[request['what']]
    start = time.perf_counter()
    result = function(model, images, request['layers'])
    told = {'seconds': time.perf_counter() - start}
    if request.get('save'):
        told['file'] = str(inputs.with_name('maps.npy'))
        np.save(told['file'], result)
    return told


def main(network, weights):
    """Answers requests until there are no more."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network).eval()
    save_file(model.state_dict(), weights)
    model = model.to(memory_format=torch.channels_last)
    print(json.dumps([f'{name} {version(name)}' for name in ('torch', 'grad-cam')]), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, json.loads(line))), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
