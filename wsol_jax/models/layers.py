"""What the networks are made of: endpoint taps, convolution blocks, pooling."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero

from wsol_jax.names import unknown_name

# What goes on from an endpoint, made of its activation; or that, and what is shown beside it.
ChangeFunction = Callable[[jax.Array], jax.Array | tuple[jax.Array, Mapping[str, jax.Array]]]
# What is done at an endpoint: an array is added to it; then a function makes of it what goes on.
Change = jax.Array | ChangeFunction
Perturbations = Mapping[str, Change | tuple[jax.Array, ChangeFunction]]
Pads = str | Sequence[tuple[int, int]]
# Of networks that exist with TensorFlow's padding everywhere, and with that of their torch copies.
PADDINGS = ('same', 'torchvision')

glorot_uniform = nnx.initializers.glorot_uniform()


def he_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """He et al. 2015, arXiv 1502.01852: normal with variance 2 / fan-in, output axis last."""
    size = math.prod(shape)
    # Drawn in a power of two and cut: a draw is compiled for every length, which was half of
    # the time to construct InceptionV3 on a CPU.
    drawn = jax.random.normal(key, (1 << (size - 1).bit_length(),), dtype)
    return drawn[:size].reshape(shape) * math.sqrt(2.0 * shape[-1] / size)


def near_identity(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """A convolution that hands its input on, plus a tenth of `glorot_uniform`.

    After Dirac initialisation (Zagoruyko and Komodakis 2017, arXiv 1706.00388): a classifier that
    is added behind such layers starts as one on the features before them.

    Args:
        key: for the random part.
        shape: [h,w,K,K'] with odd h and w; where K' > K the last ones start from the random part.
        dtype: of the kernel.
    """
    kernel = 0.1 * glorot_uniform(key, shape, dtype)
    return kernel.at[shape[0] // 2, shape[1] // 2].add(jnp.eye(shape[2], shape[3], dtype=dtype))


class Endpoints:
    """Records the activations of one forward pass and perturbs them."""

    def __init__(self, perturb: Perturbations | None = None):
        given = {n: p if isinstance(p, tuple) else (p,) for n, p in (perturb or {}).items()}
        self._added = {n: x for n, parts in given.items() for x in parts if not callable(x)}
        self._functions = {n: f for n, parts in given.items() for f in parts if callable(f)}
        self._seen: dict[str, jax.Array] = {}

    def tap(self, name: str, x: jax.Array) -> jax.Array:
        """Adds to `x`, records the sum, and returns what a function makes of it.

        A function that returns another array puts it in place of the activation: what nobody else
        reads of the layers before it is then not computed. What it returns by name beside that, as
        {'map': ..}, is shown as 'name/map'.

        Raises:
            ValueError: what is added, or what a function returns, has another shape than `x` (a
                perturbation that broadcasts over the batch would sum the gradient over it).
        """
        if name in self._added:
            x = x + _shaped(self._added[name], name, x)
        self._seen[name] = x
        if name not in self._functions:
            return x
        changed = self._functions[name](x)
        changed, shown = changed if isinstance(changed, tuple) else (changed, {})
        for part, value in shown.items():
            self.show(f'{name}/{part}', value)
        return _shaped(changed, name, x)

    def show(self, name: str, x: jax.Array) -> None:
        """Records what can be read, but not perturbed, such as attention.

        Raises:
            ValueError: it is perturbed.
        """
        if name in self._added or name in self._functions:
            raise ValueError(f'endpoint {name!r} can be read alone: nothing is pulled back to it')
        self._seen[name] = x

    def finish(self) -> dict[str, jax.Array]:
        """Every recorded activation, from input to output.

        Raises:
            ValueError: a perturbation was given for an endpoint that does not exist.
        """
        for name in (*self._added, *self._functions):
            if name not in self._seen:
                raise ValueError(unknown_name('endpoint', name, self._seen))
        return self._seen


def _shaped(value: jax.Array, name: str, x: jax.Array) -> jax.Array:
    if jnp.shape(value) != x.shape:
        raise ValueError(
            f'perturbation at endpoint {name!r} has shape {jnp.shape(value)}, '
            f'it must be that of the activation, {x.shape}'
        )
    return value


def conv(
    in_features: int,
    features: int,
    kernel: int | tuple[int, int],
    *,
    strides: int = 1,
    padding: Pads = 'SAME',
    dilation: int = 1,
    use_bias: bool = True,
    kernel_init: nnx.Initializer = he_normal,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A 2-D convolution; `kernel` is the side of a square or (height, width).

    `dilation` is how far apart, in places of its input, its neighbouring weights look.
    """
    return nnx.Conv(
        in_features,
        features,
        (kernel, kernel) if isinstance(kernel, int) else kernel,
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        use_bias=use_bias,
        kernel_init=kernel_init,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Pads, **how: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, as what is fast on a CPU.

    There a 1x1 convolution is a matrix product, half as fast again. XLA computes the gradient of a
    larger kernel as a convolution with a window as large as the image, four times slower than one
    matrix product for each position of the kernel. The price is memory: what each position of the
    kernel sees of x is copied.

    Args:
        x: [B,H,W,K].
        kernel: [h,w,K,K'].
        strides: of both axes.
        padding: of both axes.
        **how: the other arguments; neither grouped nor with `lhs_dilation`.
    """
    dilation = how.get('rhs_dilation') or (1, 1)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **how)

    if jax.default_backend() != 'cpu':
        return plain(x, kernel)
    if kernel.shape[:2] == (1, 1):
        (view,) = _views(x, (1, 1), strides, padding, fill=0.0)
        rows = view.reshape(-1, view.shape[-1]) @ kernel[0, 0]
        return rows.reshape(*view.shape[:-1], -1)

    def tangent(
        primals: Sequence[jax.Array], tangents: Sequence[jax.Array | SymbolicZero]
    ) -> tuple[jax.Array, jax.Array]:
        (x, kernel), (dx, dkernel) = primals, tangents
        terms = [] if isinstance(dx, SymbolicZero) else [plain(dx, kernel)]
        if not isinstance(dkernel, SymbolicZero):
            views = _views(x, kernel.shape[:2], strides, padding, 0.0, dilation)
            weights = dkernel.reshape(-1, *kernel.shape[2:])
            terms += [view @ w for view, w in zip(views, weights, strict=True)]
        return plain(x, kernel), sum(terms[1:], terms[0])

    # A JVP rule, not a VJP: second derivatives and forward mode go on working.
    fast = jax.custom_jvp(plain)
    fast.defjvp(tangent, symbolic_zeros=True)
    return fast(x, kernel)


class Random(nnx.Module):
    """What draws at random in training, with a key of its own for every image.

    What an image draws does not depend on how a batch is split over devices or steps.

    Attributes:
        key: one key, or one for each image [B].
        deterministic: nothing is to be drawn, as in inference.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.deterministic = False
        self.key = nnx.RngKey(rngs.dropout(), tag='dropout')

    def keys(self, count: int) -> jax.Array:
        """The keys of a batch of this many images: [B]."""
        keys = self.key[...]
        if not keys.ndim:  # called outside the training stage: every call draws anew
            drawn = jax.random.split(keys, 1 + count)
            self.key[...], keys = drawn[0], drawn[1:]
        return keys


class Dropout(Random):
    """Dropout (Srivastava et al., JMLR 2014)."""

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        super().__init__(rngs=rngs)
        self.rate = rate

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,...] -> [B,...]; what is kept is scaled by 1 / (1 - rate)."""
        if self.deterministic:
            return x
        keep, shape = 1 - self.rate, self._shape(x)
        kept = jax.vmap(lambda k: jax.random.bernoulli(k, keep, shape))(self.keys(len(x)))
        return jnp.where(kept, x / keep, 0)

    def _shape(self, x: jax.Array) -> tuple[int, ...]:
        """Of what is drawn for one image."""
        return x.shape[1:]


class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): all of an image or nothing."""

    def _shape(self, x: jax.Array) -> tuple[int, ...]:
        return (1,) * (x.ndim - 1)


class ConvNorm(nnx.Module):
    """Convolution without bias, batch normalisation and, by default, ReLU."""

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel: int | tuple[int, int],
        *,
        strides: int = 1,
        padding: Pads = 'SAME',
        dilation: int = 1,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        relu: bool = True,
        kernel_init: nnx.Initializer = he_normal,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(
            in_features,
            features,
            kernel,
            strides=strides,
            padding=padding,
            dilation=dilation,
            use_bias=False,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(features, epsilon=epsilon, momentum=momentum, rngs=rngs)
        self.relu = relu

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,in_features] -> [B,H',W',features]."""
        x = self.bn(self.conv(x))
        return nnx.relu(x) if self.relu else x


def torch_pads(
    size: Sequence[int], window: int, stride: int, pad: int, ceil_mode: bool = False
) -> list[tuple[int, int]]:
    """The paddings with which a VALID window reproduces torch's pooling arithmetic.

    Args:
        size: height and width of the input.
        window: side of the pooling window.
        stride: its stride.
        pad: torch's symmetric padding.
        ceil_mode: torch's ceil_mode: a last window that starts inside the input (or its
            left padding) counts even where it runs over the right edge.

    Returns:
        (low, high) for height and width.
    """
    rounded = math.ceil if ceil_mode else math.floor
    pads = []
    for length in size:
        steps = rounded((length + 2 * pad - window) / stride)
        if steps * stride >= length + pad:
            steps -= 1
        pads.append((pad, max(pad, steps * stride + window - length - pad)))
    return pads


def max_pool(x: jax.Array, window: int, stride: int, padding: Pads) -> jax.Array:
    """Max pooling of [B,H,W,K]; of several equal maxima the first takes the gradient.

    A chain of selections, because the gradient of XLA's own max pooling (select and scatter)
    is three to twenty times slower on a CPU.
    """
    sides, strides = (window, window), (stride, stride)
    best, *others = _views(x, sides, strides, padding, fill=-jnp.inf)
    for view in others:
        best = jnp.where((view > best) | jnp.isnan(view), view, best)
    return best


def avg_pool(x: jax.Array, window: int, count_padding: bool) -> jax.Array:
    """Average pooling at stride 1 and unchanged size.

    Args:
        x: [B,H,W,K].
        window: odd side of the window.
        count_padding: divide by the whole window at the border (torch's default) instead
            of by its part inside the image (TensorFlow's).
    """
    return nnx.avg_pool(x, (window, window), padding='SAME', count_include_pad=count_padding)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Pads = 'SAME'
) -> jax.Array:
    """Depthwise convolution.

    A sum over the kernel's positions, because XLA's grouped convolution is tens of times
    slower on a CPU, its gradient hundreds of times.

    Args:
        x: [B,H,W,K].
        kernel: [S,S,1,K].
        stride: of both axes.
        padding: of both axes; TensorFlow's by default.
    """
    weights = kernel.reshape(-1, kernel.shape[-1])
    views = _views(x, kernel.shape[:2], (stride, stride), padding, fill=0.0)
    return sum((v * w for v, w in zip(views, weights, strict=True)), jnp.zeros((), x.dtype))


def _views(
    x: jax.Array,
    sides: Sequence[int],
    strides: Sequence[int],
    padding: Pads,
    fill: float,
    dilation: Sequence[int] = (1, 1),
) -> Iterator[jax.Array]:
    """What each position of a sliding window sees, row by row: each [B,H',W',K]."""
    spans = [(side - 1) * apart + 1 for side, apart in zip(sides, dilation, strict=True)]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], spans, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    height, width = (
        (length - span) // stride * stride + 1
        for length, span, stride in zip(x.shape[1:3], spans, strides, strict=True)
    )
    for i in range(0, spans[0], dilation[0]):
        for j in range(0, spans[1], dilation[1]):
            yield x[:, i : i + height : strides[0], j : j + width : strides[1]]


def global_average_pool(x: jax.Array) -> jax.Array:
    """[B,H,W,K] -> [B,K]."""
    return x.mean(axis=(1, 2))
