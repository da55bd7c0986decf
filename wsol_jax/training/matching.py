"""Losses of a set of predicted boxes: each true box is matched with one of them.

DETR (Carion et al., ECCV 2020, arXiv 2005.12872) with the focal loss (Lin et al., ICCV 2017, arXiv
1708.02002), as in DETR3D (Wang et al., CoRL 2021, arXiv 2110.06922).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
CLASS_WEIGHT, BOX_WEIGHT = 2.0, 0.25
focal_loss = partial(optax.sigmoid_focal_loss, alpha=ALPHA, gamma=GAMMA)


class SetLoss(NamedTuple):
    """Sums of one image, not yet divided by its number of boxes.

    Attributes:
        focal: of all valid queries and classes.
        boxes: of the absolute differences of the codes of matched boxes.
        matched: how many boxes are.
    """

    focal: jax.Array
    boxes: jax.Array
    matched: jax.Array


def matched_queries(cost: jax.Array, queries: jax.Array, boxes: jax.Array) -> jax.Array:
    """The query of each box, one to one, such that the sum of the costs is lowest.

    Args:
        cost: [Q,N], finite where both are valid.
        queries: bool [Q], which ones are valid.
        boxes: bool [N], which ones are valid; as many as there are queries are matched.

    Returns:
        int32 [N]; -1 for a box without a query.
    """
    both = queries[:, None] & boxes
    cost = jnp.where(both, cost, 0)
    # To leave out a valid pair costs more than all that the others could save.
    none = 2 * (jnp.max(jnp.abs(cost)) + 1) * (1 + min(cost.shape))
    rows, columns = optax.assignment.hungarian_algorithm(jnp.where(both, cost, none))
    found = jnp.full(boxes.shape, -1, jnp.int32)
    return found.at[columns].set(jnp.where(both[rows, columns], rows, -1).astype(jnp.int32))


def matching_cost(
    logits: jax.Array, codes: jax.Array, classes: jax.Array, true_codes: jax.Array
) -> jax.Array:
    """What it costs that a query stands for a box.

    Args:
        logits: [Q,C].
        codes: [Q,K], of predicted boxes.
        classes: int [N], of the boxes.
        true_codes: [N,K].

    Returns:
        [Q,N]: how the focal loss changes where the class is true, and the L1 distance, weighted.
    """
    positive = focal_loss(logits, jnp.ones_like(logits))
    negative = focal_loss(logits, jnp.zeros_like(logits))
    of_class = (positive - negative)[:, jnp.maximum(classes, 0)]
    distance = jnp.sum(jnp.abs(codes[:, None] - true_codes), axis=-1)
    return CLASS_WEIGHT * of_class + BOX_WEIGHT * distance


def set_loss(
    logits: jax.Array,
    codes: jax.Array,
    queries: jax.Array,
    classes: jax.Array,
    true_codes: jax.Array,
) -> SetLoss:
    """The losses of one image.

    Args:
        logits: [Q,C].
        codes: [Q,K], of predicted boxes.
        queries: bool [Q], which ones are valid; the others have no loss.
        classes: int [N], of the boxes; -1 for none.
        true_codes: [N,K].
    """
    cost = jax.lax.stop_gradient(matching_cost(logits, codes, classes, true_codes))
    cost = jnp.nan_to_num(cost, posinf=1e6, neginf=-1e6)  # the search for a NaN would not end
    of_box = matched_queries(cost, queries, classes >= 0)
    found = of_box >= 0
    place = jnp.where(found, of_box, len(logits))  # one past the end: left out
    labels = jnp.zeros_like(logits).at[place, jnp.maximum(classes, 0)].set(1, mode='drop')
    focal = focal_loss(logits, labels)
    differences = jnp.sum(jnp.abs(codes[jnp.maximum(of_box, 0)] - true_codes), axis=-1)
    return SetLoss(
        jnp.sum(jnp.where(queries[:, None], focal, 0)),
        jnp.sum(jnp.where(found, differences, 0)),
        jnp.sum(found),
    )
