"""Maps from the attention of vision transformers, without a class."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from wsol_jax.localization.method import ALL, Method, Run

ATTENTION = 'attention'  # the part of a block where it is shown


def rollout() -> Method:
    """Attention rollout: the first row of prod_l (A_l + I) / 2, A_l the attention of block l.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, equation 1: how much
    of each patch flows into the class token, the heads of a block being averaged. What a spatial
    token takes counts as the class token's.

    Weak where something else than the object is attended to: it knows no class.
    """
    return Method('rollout', passes=_rollout, where='all', part=ATTENTION)


def _rollout(run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
    del layers
    _, endpoints = run.forward(run.inputs)
    blocks = [x for name, x in endpoints.items() if name.endswith(f'/{ATTENTION}')]
    return {ALL: flow(blocks)[None, ..., None]}


def flow(blocks: Sequence[jax.Array]) -> jax.Array:
    """The row of the class token of the product of A/2 + I/2, at the patches.

    Args:
        blocks: attention of each, from input to output: weights of the patches as keys [B,h,w,N],
            the N queries are the class token, the patches, and whatever else.

    Returns:
        [B,h,w]; with what flows from the class token itself each image sums to 1.
    """
    batch, height, width, _ = blocks[0].shape
    patches, of_class = jnp.zeros((batch, height, width)), jnp.ones((batch, 1))
    for weights in reversed(blocks):  # a row times a matrix: nothing of N x N is multiplied
        row = jnp.concatenate([of_class, patches.reshape(batch, -1)], axis=1)
        passed = jnp.einsum('bn,bhwn->bhw', row, weights[..., : row.shape[1]])
        patches = (patches + passed) / 2
        of_class = 1 - patches.sum(axis=(1, 2)).reshape(batch, 1)
    return patches
