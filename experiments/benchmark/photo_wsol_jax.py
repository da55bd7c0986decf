"""The job of `photo.py` with wsol_jax: python photo_wsol_jax.py PHOTO WEIGHTS FOLDER."""

import sys

import jax

import wsol_jax

print('imports', flush=True)
photo, weights, folder = sys.argv[1:]
network = wsol_jax.load_network('squeezenet1_1', weights)
layers = network.layers()[-4:]


def picture(name, methods, layers, classes='top1'):
    """Draws and writes it."""
    result = wsol_jax.localize(network, photo, methods, layers, classes)
    wsol_jax.show(photo, result, threshold=0.2).savefig(f'{folder}/{name}.png')
    print(name, flush=True)
    return result


result = picture('methods', ('layer_cam', 'grad_cam', 'hires_cam'), layers[:1])
picture('layers', ('grad_cam',), layers)
picture('classes', ('layer_cam', 'grad_cam'), layers[:2], 'top2')
probabilities = jax.nn.softmax(result.logits[0])
for i in probabilities.argsort(descending=True)[:5]:
    print(f'{network.class_names[i]}: {probabilities[i]:.1%}')
