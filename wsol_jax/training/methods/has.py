"""Hide-and-Seek (Kumar Singh and Lee, ICCV 2017, arXiv 1704.04232)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from wsol_jax.fields import Range, documented, setting
from wsol_jax.training.method import Shard, TrainedMethod


@documented
@dataclass(frozen=True, kw_only=True)
class HaS(TrainedMethod):
    """The plain classifier, from whose training images random patches are hidden.

    The network has to find all parts of an object. What is hidden becomes 0 after preprocessing,
    the mean colour (mid-grey where inputs are from -1 to 1). At 224 pixels 4 patches along a side
    are of 56 pixels, the largest of the paper; the 4 of wsolevaluation (Choe et al., CVPR 2020),
    whose probability this is, are pixels.

    Weak on small objects, all of which a patch may hide while their label stays.
    """

    grid: int = setting(4, 'patches along a side', 'checkpoints', Range(1, 1024))
    drop: float = setting(0.5, 'probability that a patch is hidden', 'checkpoints', Range(0, 1))

    def augment(self, inputs: jax.Array, batch: Shard, keys: jax.Array) -> tuple[jax.Array, Shard]:
        """Hides patches of every image; see `TrainedMethod.augment`."""
        shape = (self.grid, self.grid)
        hidden = jax.vmap(lambda key: jax.random.bernoulli(key, self.drop, shape))(keys)
        height, width = inputs.shape[1:3]
        return jnp.where(pixels_of(hidden, height, width)[..., None], 0, inputs), batch


def pixels_of(patches: jax.Array, height: int, width: int) -> jax.Array:
    """Patches [B,n,n] -> [B,height,width]; their sides differ by a pixel at most."""
    grid = patches.shape[1]
    rows, columns = (jnp.arange(side) * grid // side for side in (height, width))
    return patches[:, rows[:, None], columns]
