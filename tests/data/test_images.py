"""Images of any kind and size: what the network gets, and what is said of the rest."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import ImageFolder, evaluation_batches
from wsol_jax.data.images import batches, listed, read_image

RIGHT = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), np.uint8)
ORIENTATION = 274


def photo(height, width, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def whole(images, shape, channels=3):
    ((array, _),) = batches(images, shape, len(images), channels)
    return array


def test_an_array_of_the_right_size_comes_whole_and_uncopied():
    for array in (RIGHT, jnp.asarray(RIGHT), RIGHT / np.float32(255)):
        ((images, sizes),) = batches(listed(array), (8, 6), 2)
        assert images is array and sizes == [(6, 8)] * 3
        ((images, _),) = batches(listed(array), None, 2)
        assert images is array


def test_all_batches_have_one_size_and_the_last_is_filled_up():
    images = [photo(5 + i, 20 - i, i) for i in range(5)]
    found = list(batches(listed(images), (8, 6), 2))
    assert [x.shape for x, _ in found] == [(2, 8, 6, 3)] * 3
    assert [s for _, sizes in found for s in sizes] == [(20 - i, 5 + i) for i in range(5)]
    assert not found[2][0][1].any()
    # Resized as Pillow does it, antialiased.
    for i, image in enumerate(images):
        expected = Image.fromarray(image).resize((6, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found[i // 2][0][i % 2], expected)
    ((few, _),) = batches(listed(images[:1]), (8, 6), 16)
    assert few.shape == (1, 8, 6, 3)  # a loop over single photos computes no padding


def test_files_are_read_as_the_command_reads_them(tmp_path):
    for i in range(3):
        Image.fromarray(photo(30 + i, 40, i)).save(tmp_path / f'{i}.jpg')
    Image.fromarray(photo(9, 7)[..., 0]).save(tmp_path / '3.png')  # grey
    (batch,) = evaluation_batches(ImageFolder(tmp_path), 8, 4)
    names = sorted(tmp_path.iterdir())
    for files in (names, [str(n) for n in names], (n for n in names), np.array(names, object)):
        np.testing.assert_array_equal(whole(listed(files), (8, 8)), batch.images)
    opened = [Image.open(n) for n in names]
    np.testing.assert_array_equal(whole(listed(opened), (8, 8)), batch.images)


def test_one_opened_image_many_times(tmp_path):
    Image.fromarray(photo(300, 400)).save(tmp_path / 'a.jpg')
    expected, _ = read_image(tmp_path / 'a.jpg', (8, 6))
    for array in whole(listed([Image.open(tmp_path / 'a.jpg')] * 16), (8, 6)):
        np.testing.assert_array_equal(array, expected)


def test_exif_orientation_is_applied(tmp_path):
    image, exif = photo(4, 10), Image.Exif()
    exif[ORIENTATION] = 6  # displayed turned by a quarter, clockwise
    Image.fromarray(image).save(tmp_path / 'a.png', exif=exif)
    expected = np.rot90(image, -1)
    for item in (tmp_path / 'a.png', Image.open(tmp_path / 'a.png')):
        pixels, size = read_image(item)
        np.testing.assert_array_equal(pixels, expected)
        assert size == (4, 10)


def test_floats_are_resized_without_rounding():
    image = photo(13, 9)
    found, size = read_image(image / 255, (8, 6))
    assert found.dtype == np.float32 and size == (9, 13)
    rounded, _ = read_image(image, (8, 6))
    np.testing.assert_allclose(255 * found, rounded, atol=1)
    assert np.abs(255 * found - rounded).max() > 0.3


def test_floats_and_bytes_in_one_list():
    mixed = whole(listed([RIGHT[0], RIGHT[1] / 255]), (8, 6))
    np.testing.assert_allclose(mixed, RIGHT[:2] / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize('shape', [(1, 1), (1, 500), (500, 1)])
def test_images_one_pixel_wide(shape):
    image = photo(*shape)
    pixels, size = read_image(image, (8, 6))
    assert pixels.shape == (8, 6, 3) and size == shape[::-1]
    assert image.min() <= pixels.min() and pixels.max() <= image.max()


def test_one_image_is_a_batch_of_one(tmp_path):
    Image.fromarray(RIGHT[0]).save(tmp_path / 'a.png')
    for one in (RIGHT[0], tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(RIGHT[0])):
        np.testing.assert_array_equal(whole(listed(one), (8, 6)), RIGHT[:1])


def test_other_numbers_of_channels():
    grey = RIGHT[..., :1]
    np.testing.assert_array_equal(whole(listed(grey, 1), (8, 6), 1), grey)
    pixels, _ = read_image(Image.fromarray(RIGHT[0, ..., 0]), (8, 6), 1)
    np.testing.assert_array_equal(pixels, grey[0])
    four = np.concatenate([RIGHT, grey], axis=-1)
    found = whole(listed(list(four), 4), (4, 4), 4)
    np.testing.assert_array_equal(found[..., :3], whole(listed(list(RIGHT)), (4, 4)))
    with pytest.raises(ValueError, match=r'takes 4 channels, .*: pass arrays \[H,W,4\]'):
        listed(['a.jpg'], 4)


class Tensor:
    """What torch's tensors have: no NumPy array, but one inside."""

    def __init__(self, array):
        self._array = array
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, 'torch.uint8'

    def detach(self):
        return self

    def cpu(self):
        return self._array


def test_tensors_of_other_frameworks():
    np.testing.assert_array_equal(listed(Tensor(RIGHT)), RIGHT)
    with pytest.raises(ValueError, match=r'channels come last: pass x.permute\(0, 2, 3, 1\)'):
        listed(Tensor(RIGHT.transpose(0, 3, 1, 2)))


WRONG = {
    'channels first': (
        RIGHT.transpose(0, 3, 1, 2),
        r'got \[3, 3, 8, 6\]; channels come last: pass x.transpose\(0, 2, 3, 1\)',
    ),
    'one, channels first': (photo(8, 6).transpose(2, 0, 1), r'x.transpose\(1, 2, 0\)'),
    'channels first in a list': (
        [photo(8, 6).transpose(2, 0, 1)],
        r'images\[0\] must be \[H,W,3\], got \[3, 8, 6\]; .*x.transpose\(1, 2, 0\)',
    ),
    'grey batch': (RIGHT[:2, ..., 0], r'got \[2, 8, 6\]; grey: pass np.stack\(\[x\] \* 3, -1\)'),
    'grey image': ([RIGHT[0, ..., 0]], r'got \[8, 6\]; grey: pass np.stack\(\[x\] \* 3, -1\)'),
    'one channel': (RIGHT[..., :1], r'got \[3, 8, 6, 1\]; grey: pass x.repeat\(3, -1\)'),
    'alpha': (np.zeros((2, 8, 6, 4), np.uint8), r'; drop the alpha channel: pass x\[..., :3\]'),
    'integers': (RIGHT.astype(int), r'must be uint8 \(0..255\) or float in \[0, 1\], got int64'),
    '0 to 255': (
        RIGHT.astype(float),
        r'in \[0, 1\], got \[.*; pass 0..255 images as uint8',
    ),
    'nan': (np.full((1, 8, 6, 3), np.nan), r'got \[nan, nan\]'),
    'none': (RIGHT[:0], r'there are no images: \[0, 8, 6, 3\]'),
    'no files': ([], 'there are no images'),
    'no pixels': ([np.zeros((0, 6, 3), np.uint8)], r'got \[0, 6, 3\], which has no pixels'),
    'a number': (3, 'must be files, PIL images or arrays, got int'),
    'in a list': (['a.jpg', None], r'images\[1\] is a NoneType; images are files, PIL images'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_no_image_is_told_in_one_line(case):
    images, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as error:
        listed(images)
    assert '\n' not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'nothing\.jpg: no such file'):
        list(batches(listed([tmp_path / 'nothing.jpg']), (8, 6), 4))
    (tmp_path / 'text.jpg').write_text('text')
    with pytest.raises(ValueError, match=r'text\.jpg: not an image'):
        list(batches(listed(str(tmp_path / 'text.jpg')), (8, 6), 4))


def test_images_as_they_are_have_one_size():
    same = [photo(5, 7, i) for i in range(3)]
    ((images, sizes), _) = batches(listed(same), None, 2)
    np.testing.assert_array_equal(images, same[:2])
    assert sizes == [(7, 5)] * 2
    with pytest.raises(ValueError, match=r'7x5 and 5x7 pixels .*leave out resize=False'):
        list(batches(listed([*same, photo(7, 5)]), None, 2))
