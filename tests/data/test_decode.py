import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import (
    BadImage,
    DataError,
    Decoding,
    Record,
    WsolFolder,
    decode,
    decode_image,
    decode_mask,
    resize_image,
    stored_size,
)
from wsol_jax.data.decode import Described, describe_image, read_label_map, stored_mask

DISPLAYED = Decoding(displayed=True)
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (4, 6, 3), np.uint8)  # rows, columns
# What a viewer shows of stored rows and columns, by EXIF orientation (Exif 2.32, tag 0x0112): which
# sides of the picture its first stored row and first stored column are.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def png(array):
    return cv2.imencode('.png', np.asarray(array, np.uint8))[1].tobytes()


def encoded(image, format, **options):
    stored = io.BytesIO()
    image.save(stored, format, **options)
    return stored.getvalue()


def tagged(pixels, orientation, format='PNG', **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels), format, exif=exif, **options)


def of(stored, size=None, decoding=None, masks=()):
    return Record('x', stored, (), size, (), masks, decoding or Decoding())


@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_or_not(format, orientation):
    stored = tagged(PICTURE, orientation, format, **{'lossless': True} if format == 'WEBP' else {})
    shown = SHOWN[orientation](PICTURE)
    np.testing.assert_array_equal(decode_image(of(stored)), PICTURE)
    np.testing.assert_array_equal(decode_image(of(stored, decoding=DISPLAYED)), shown)
    assert stored_size(of(stored)) == (6, 4)
    assert stored_size(of(stored, decoding=DISPLAYED)) == shown.shape[1::-1]
    assert describe_image(of(stored)) == Described(format, (6, 4), orientation, False, False)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_turned_jpeg_shows_what_the_upright_one_does(orientation):
    pixels = cv2.resize(PICTURE, (48, 32))
    stored = {
        k: tagged(np.ascontiguousarray(SHOWN[k](pixels)), orientation, 'JPEG', quality=95)
        for k in range(1, 9)
    }
    back = {6: 8, 8: 6}.get(orientation, orientation)
    found = decode_image(of(stored[back], decoding=DISPLAYED))
    assert found.shape == pixels.shape
    assert (
        abs(
            found.astype(int)
            - decode_image(of(encoded(Image.fromarray(pixels), 'JPEG', quality=95)))
        ).mean()
        < 2
    )


@pytest.mark.parametrize('orientation', [0, 9, 300])
def test_an_orientation_that_is_none_turns_nothing(orientation):
    found = decode_image(of(tagged(PICTURE, orientation), decoding=DISPLAYED))
    np.testing.assert_array_equal(found, PICTURE)


def test_broken_exif_spoils_no_picture():
    stored = encoded(Image.fromarray(PICTURE), 'JPEG', exif=b'Exif\0\0MM\0*\xff\xff\xff\xff')
    assert decode_image(of(stored, decoding=DISPLAYED)).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ('orientation', 'size', 'decoding', 'said'),
    [
        (6, (4, 6), Decoding(), "'stored', but listed as 4x6; set that to the frame"),
        (6, (6, 4), DISPLAYED, "'displayed', but listed as 6x4; set that to the frame"),
        (6, (40, 61), Decoding(), "'stored', but listed as 40x61; set that"),
        (1, (4, 6), Decoding(), "'stored', but listed as 4x6; correct it"),
        (3, (4, 6), DISPLAYED, "'displayed', but listed as 4x6; correct it"),
    ],
)
def test_a_size_of_the_other_frame_is_refused(tmp_path, orientation, size, decoding, said):
    (tmp_path / 'a.png').write_bytes(tagged(PICTURE, orientation))
    with pytest.raises(DataError) as error:
        decode_image(of(tmp_path / 'a.png', size, decoding))
    assert not isinstance(error.value, BadImage), 'which would be passed over'
    assert f'{tmp_path}/a.png: is ' in str(error.value) and said in str(error.value)
    assert 'config.data.orientation=' in str(error.value)


@pytest.mark.parametrize(('orientation', 'size'), [(6, (60, 40)), (1, (40, 61)), (6, (5, 5))])
def test_images_may_be_stored_smaller_than_the_metadata_say(orientation, size):
    found = decode_image(of(tagged(PICTURE, orientation), size))
    np.testing.assert_array_equal(found, PICTURE)


def grey16(values, format, **options):
    return encoded(Image.fromarray(np.asarray(values, np.uint16)), format, **options)


@pytest.mark.parametrize(
    'options',
    [
        {'format': 'PNG'},
        {'format': 'TIFF'},
        {'format': 'TIFF', 'compression': 'tiff_lzw'},
        {'format': 'PPM'},
    ],
)
def test_16_bit_grey_is_scaled_by_its_depth(options):
    values = np.array([[0, 128, 257, 1000], [32768, 40000, 65534, 65535]])
    found = decode_image(of(grey16(values, **options)))
    np.testing.assert_array_equal(found, np.repeat(np.rint(values / 257)[..., None], 3, 2))


def test_big_endian_and_inverted_16_bit_tiff():
    values = np.array([[0, 257, 65535]])
    for dtype, photometric, expected in (
        ('<u2', 1, [0, 1, 255]),
        ('>u2', 1, [0, 1, 255]),
        ('<u2', 0, [255, 254, 0]),
        ('<u2', None, [0, 1, 255]),
    ):
        found = decode_image(of(tiff(values, dtype, 16, photometric)))
        assert found[0, :, 0].tolist() == expected


def tiff(values, dtype, bits, photometric, changed=None):
    """A TIFF by hand (TIFF 6.0): header, pixels, one directory."""
    data, order = np.asarray(values).astype(dtype).tobytes(), dtype[0]
    data += b'\0' * (len(data) % 2)
    height, width = np.shape(values)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: 1} | (changed or {})
    tags = {tag: tags[tag] for tag in sorted(tags) if tags[tag] is not None}
    end = {'<': 'little', '>': 'big'}[order]

    def whole(value, length):
        return int(value).to_bytes(length, end)

    entries = b''.join(
        whole(tag, 2) + whole(4, 2) + whole(1, 4) + whole(value, 4) for tag, value in tags.items()
    )
    mark = b'II' if order == '<' else b'MM'
    header = mark + whole(42, 2) + whole(8 + len(data), 4)
    return header + data + whole(len(tags), 2) + entries + whole(0, 4)


@pytest.mark.parametrize('extension', ['.png', '.tiff'])
def test_16_bit_colours_keep_their_high_byte(extension):
    values = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    stored = cv2.imencode(extension, values[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(of(stored)), values >> 8)
    assert describe_image(of(stored)).deep


@pytest.mark.parametrize('scale', [1, 255])
def test_floats_within_1_or_255(scale):
    values = np.linspace(0, scale, 24, dtype=np.float32).reshape(4, 6)
    found = decode_image(of(encoded(Image.fromarray(values), 'TIFF')))
    expected = np.rint(255 * (np.arange(24) / 23)).reshape(4, 6)
    assert abs(found[..., 0] - expected).max() <= 1 and found.max() == 255
    assert describe_image(of(encoded(Image.fromarray(values), 'TIFF'))).deep


def test_integers_of_32_bits_within_255():
    values = np.array([[0, 7, 255]], np.int32)
    assert decode_image(of(encoded(Image.fromarray(values), 'TIFF')))[0, :, 1].tolist() == [
        0,
        7,
        255,
    ]


@pytest.mark.parametrize(
    ('values', 'said'),
    [
        (np.array([[0, 300.5]], np.float32), 'x: 32 bit floats from 0 to 300.5, of which none is'),
        (np.array([[-1, 0.5]], np.float32), 'x: 32 bit floats from -1 to 0.5'),
        (np.array([[np.nan, 0.5]], np.float32), 'x: 32 bit floats from nan to nan'),
        (np.array([[0, 70000]], np.int32), 'x: 32 bit integers from 0 to 70000'),
    ],
)
def test_depths_without_a_known_white_are_refused(values, said):
    with pytest.raises(BadImage) as error:
        decode_image(of(encoded(Image.fromarray(values), 'TIFF')))
    assert said in str(error.value)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparent_pixels_show_white(mode):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, :3] = 40
    pixels[0, :, 3] = [255, 0, 102]
    image = Image.fromarray(pixels)
    if mode == 'P':
        image = image.convert('RGB').quantize(2)
        stored = encoded(image, 'PNG', transparency=image.getpixel((1, 0)))
        assert (decode_image(of(stored)) == 255).all()
    else:
        stored = encoded(image.convert(mode), 'PNG')
        # 40 * .4 + 255 * .6
        np.testing.assert_array_equal(decode_image(of(stored))[0, :, 0], [40, 255, 169])
    assert describe_image(of(stored)).transparent


def test_inverted_cmyk_of_adobe():
    """Adobe stores ink as 255 - ink; red = 255 (1 - c) (1 - k)."""
    inks = np.full((8, 8, 4), (0, 200, 100, 50), np.uint8)
    stored = encoded(Image.fromarray(inks, 'CMYK'), 'JPEG', quality=100, subsampling=0)
    assert b'Adobe' in stored
    expected = [255 * (1 - ink / 255) * (1 - 50 / 255) for ink in (0, 200, 100)]
    assert abs(decode_image(of(stored))[4, 4] - expected).max() <= 3


def test_ycbcr_and_lab():
    """Rec. 601 by its formula; pure red of sRGB has L*a*b* (54.3, 81, 70) under D50."""
    stored = encoded(Image.new('YCbCr', (8, 8), (100, 90, 160)), 'TIFF')
    red, green, blue = 100 + 1.402 * 32, 100 - 0.344 * -38 - 0.714 * 32, 100 + 1.772 * -38
    assert abs(decode_image(of(stored))[0, 0] - np.array([red, green, blue])).max() <= 1
    lab = Image.new('LAB', (2, 2), (round(54.3 * 2.55), 128 + 81, 128 + 70))
    assert abs(decode_image(of(encoded(lab, 'TIFF')))[0, 0] - np.array([255.0, 0, 0])).max() <= 6


@pytest.mark.parametrize('format', ['GIF', 'PNG', 'TIFF', 'WEBP'])
def test_the_first_picture_of_several(format):
    first, second = (Image.new('RGB', (6, 4), colour) for colour in ('red', 'blue'))
    options = {'lossless': True} if format == 'WEBP' else {}
    stored = encoded(first, format, save_all=True, append_images=[second], **options)
    assert (decode_image(of(stored)) == (255, 0, 0)).all()


def test_other_formats_are_not_tried(tmp_path):
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n'
    ico = encoded(Image.new('RGB', (16, 16)), 'ICO')
    for name, stored in {'eps.jpg': eps, 'ico.png': ico}.items():
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(BadImage, match=f'{name}: not an image that can be decoded'):
            decode_image(of(tmp_path / name))


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'zero.png').symlink_to('/dev/zero')
    (tmp_path / 'folder.png').mkdir()
    for name in ('pipe.png', 'zero.png', 'folder.png'):
        for use in (decode_image, stored_size):
            with pytest.raises(BadImage, match=f'{name}: not a regular file'):
                use(of(tmp_path / name))
        with pytest.raises(DataError, match=f'mask .*{name}: not a regular file'):
            decode_mask(of(b'', masks=((tmp_path / name, None),)), (4, 4))


def test_links_that_leave_the_roots(tmp_path):
    (tmp_path / 'root').mkdir()
    for file in (tmp_path / 'secret.png', tmp_path / 'root/own.png'):
        file.write_bytes(tagged(PICTURE, 1))
    (tmp_path / 'root/out.png').symlink_to('../secret.png')
    (tmp_path / 'root/in.png').symlink_to('own.png')
    inside = Decoding(roots=(tmp_path / 'root',))
    assert decode_image(of(tmp_path / 'root/in.png', decoding=inside)).shape == (4, 6, 3)
    assert decode_image(of(tmp_path / 'root/out.png')).shape == (4, 6, 3)
    with pytest.raises(BadImage, match=r'out.png: a link that leaves the data set'):
        decode_image(of(tmp_path / 'root/out.png', decoding=inside))
    with pytest.raises(DataError, match=r'mask .*out.png: a link that leaves the data set'):
        masks = ((tmp_path / 'root/out.png', None),)
        decode_mask(of(b'', decoding=inside, masks=masks), (4, 4))


def test_names_stay_in_one_line(tmp_path):
    with pytest.raises(BadImage) as error:
        decode_image(of(tmp_path / 'a\n\x1b[31m\udcff.png'))
    assert str(error.value).endswith(r'a\n\x1b[31m\udcff.png: no such file')


def test_more_pixels_than_allowed():
    stored = encoded(Image.new('1', (3000, 100)), 'PNG')
    assert decode_image(of(stored)).shape == (100, 3000, 3)
    with pytest.raises(BadImage) as error:
        decode_image(of(stored, decoding=Decoding(max_pixels=299_999)))
    said = 'x: 3000x100 pixels are more than config.data.max_pixels=299999; raise that if the file'
    assert said in str(error.value)
    with pytest.raises(DataError, match='mask x: 3000x100 pixels are more than config'):
        decode_mask(of(b'', decoding=Decoding(max_pixels=9), masks=((stored, None),)), (4, 4))


@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'JPEG', 'WEBP'])
def test_scans_that_pillow_takes_for_attacks(monkeypatch, format):
    """Its guard refuses an image of more than twice this; ours alone counts, its own stays."""
    stored = encoded(Image.new('RGB', (300, 200), 'teal'), format)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    monkeypatch.setattr(decode, 'LARGE', 2000)
    if format == 'WEBP':
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 30_000)
    assert decode_image(of(stored)).shape == (200, 300, 3)
    assert (30_000 if format == 'WEBP' else 1000) == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize('mode', ['RGB', 'L', '1', 'P', 'I;16', 'F', 'RGBA'])
def test_large_images_come_reduced(monkeypatch, mode):
    """The mean of whole blocks of the image; what is not large is as it is."""
    pixels = cv2.resize(PICTURE, (203, 121))
    image = Image.fromarray(pixels).convert('RGB' if mode in ('I;16', 'F') else mode)
    if mode in ('I;16', 'F'):
        kind, scale = {'I;16': (np.uint16, 257), 'F': (np.float32, 1)}[mode]
        image = Image.fromarray(pixels[..., 0].astype(kind) * kind(scale))
    record = of(encoded(image, 'TIFF' if mode == 'F' else 'PNG'))
    whole = decode_image(record, side=8)
    monkeypatch.setattr(decode, 'LARGE', 203 * 121 - 1)
    monkeypatch.setattr(decode, 'BAND', 203 * 9)
    assert decode_image(record).shape == whole.shape == (121, 203, 3)
    reduced = decode_image(record, side=8)
    assert reduced.shape == (41, 68, 3)  # 121 // (4 * 8) = 3 times smaller
    blocks = whole[:120, :201].reshape(40, 3, 67, 3, 3).mean((1, 3))
    assert abs(reduced[:40, :67] - blocks).max() < 1
    assert decode_image(record, side=16).shape == whole.shape


def test_large_jpegs_are_decoded_smaller(monkeypatch):
    pixels = cv2.resize(PICTURE, (203, 121))
    record = of(tagged(pixels, 6, 'JPEG'), decoding=DISPLAYED)
    monkeypatch.setattr(decode, 'LARGE', 1000)
    assert decode_image(record, side=8).shape == (102, 61, 3)
    assert decode_image(record).shape == (203, 121, 3) and stored_size(record) == (121, 203)


def test_a_damaged_png_is_named():
    """One bit of the pixels: Pillow decodes something, a checksum of the file tells."""
    stored = bytearray(encoded(Image.fromarray(cv2.resize(PICTURE, (60, 40))), 'PNG'))
    stored[len(stored) // 2] ^= 1
    with pytest.raises(BadImage, match="x: damaged: a wrong checksum in b'IDAT'"):
        decode_image(of(bytes(stored)))


@pytest.mark.parametrize('orientation', [1, 6])
def test_a_tiff_without_all_its_rows_is_named(orientation):
    """Pillow shows black for what is missing; 4 rows of pixels, a header that says 700."""
    stored = tiff(PICTURE[..., 0], '<u1', 8, 1, {257: 700, 274: orientation})
    with pytest.raises(BadImage, match='x: damaged: the lower rows are missing'):
        decode_image(of(stored))


@pytest.mark.parametrize('depth', [8, 16])
def test_masks_of_every_depth(depth):
    values = np.array([[0, 1, 0, 7], [0, 200, 255, 0]], f'u{depth // 8}')
    for stored in (
        cv2.imencode('.png', values)[1].tobytes(),
        cv2.imencode('.png', np.stack([0 * values, values, 0 * values], -1))[1].tobytes(),
    ):
        np.testing.assert_array_equal(stored_mask(of(b''), stored), values > 0)


def test_a_mask_of_one_bit():
    drawn = np.array([[0, 1, 1], [1, 0, 0]], bool)
    stored = encoded(Image.fromarray(drawn), 'PNG')
    np.testing.assert_array_equal(stored_mask(of(b''), stored), drawn)


def test_the_index_of_a_palette_is_the_label():
    indices = np.array([[0, 1, 2, 3]], np.uint8)
    image = Image.fromarray(indices, 'P')
    image.putpalette([255, 255, 255, 0, 0, 0, 128, 0, 0, 9, 9, 8])  # 0 is white, 1 black
    assert stored_mask(of(b''), encoded(image, 'PNG')).tolist() == [[False, True, True, True]]
    image.putpalette([255, 255, 255, 0, 0, 0, 128, 128, 128, 1, 1, 1])  # shades in disguise
    assert stored_mask(of(b''), encoded(image, 'PNG')).tolist() == [[True, False, True, True]]


def test_masks_with_transparency():
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0] = [(9, 9, 9, 255), (9, 9, 9, 0), (0, 0, 0, 255), (0, 0, 0, 0)]
    assert stored_mask(of(b''), encoded(Image.fromarray(mask), 'PNG')).tolist() == [[1, 0, 0, 0]]
    mask[..., :3] = 0  # black brush on transparent ground
    assert stored_mask(of(b''), encoded(Image.fromarray(mask), 'PNG')).tolist() == [[1, 0, 1, 0]]
    mask[..., 3] = 255  # nothing drawn
    assert not stored_mask(of(b''), encoded(Image.fromarray(mask), 'PNG')).any()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_masks_are_turned_as_images_are(orientation):
    drawn = RNG.integers(0, 2, (4, 6)).astype(np.uint8)
    stored = tagged(drawn, orientation)
    np.testing.assert_array_equal(stored_mask(of(b''), stored), drawn)
    shown = SHOWN[orientation](drawn)
    np.testing.assert_array_equal(stored_mask(of(b'', decoding=DISPLAYED), stored), shown)


def test_a_mask_of_the_other_frame_is_refused():
    record = of(b'', (6, 4), DISPLAYED, ((png(np.ones((6, 4))), None),))
    with pytest.raises(DataError) as error:
        decode_mask(record, (8, 8))
    assert str(error.value) == (
        "mask x: is 4x6, its image 6x4 with config.data.orientation='displayed'; "
        'set that to the frame of the masks'
    )
    assert decode_mask(of(b'', (12, 8), masks=((png(np.ones((6, 4))), None),)), (8, 8)).all()


def test_grey_masks_are_those_of_the_published_protocol():
    """cv2.imdecode in grey, cv2.resize to the nearest, > .5: bit for bit."""
    for seed, shape in enumerate([(13, 17), (50, 40), (7, 90)]):
        grey = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8) * 100
        stored = png(grey)
        published = cv2.resize(
            cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_GRAYSCALE),
            (22, 31),
            interpolation=cv2.INTER_NEAREST,
        )
        found = decode_mask(of(b'', masks=((stored, None),)), (22, 31))
        np.testing.assert_array_equal(found, published > 0.5)


@pytest.mark.parametrize('mode', ['L', 'P', 'CMYK', 'RGBA', 'RGB', '1'])
def test_decode_every_mode_as_rgb(tmp_path, mode):
    red = Image.new('RGB', (6, 4), (250, 0, 0)).convert(mode)
    stored = encoded(red, 'TIFF' if mode == 'CMYK' else 'PNG')
    (tmp_path / 'image').write_bytes(stored)
    image = decode_image(Record('red', stored, (), None))
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, decode_image(Record('r', tmp_path / 'image', (), None)))
    colour = image[0, 0].astype(int)
    if mode in ('L', '1'):
        assert colour[0] == colour[1] == colour[2]
    else:
        assert colour[0] > 240 and colour[1:].max() < 15


def test_cmyk_jpeg_decodes():
    stored = encoded(Image.new('CMYK', (6, 4), (0, 255, 255, 0)), 'JPEG')
    assert decode_image(Record('red', stored, (), None)).shape == (4, 6, 3)


def test_bad_images_are_named(tmp_path):
    whole = encoded(Image.fromarray(np.arange(3000, dtype=np.uint8).reshape(25, 40, 3)), 'JPEG')
    for name, content in {'cut.jpg': whole[: len(whole) // 2], 'text.jpg': b'hello'}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImage, match=name) as error:
            decode_image(Record(name, tmp_path / name, (), None))
        assert '\n' not in str(error.value)
    with pytest.raises(BadImage, match=r'gone.jpg: no such file'):
        decode_image(Record('gone', tmp_path / 'gone.jpg', (), None))
    with pytest.raises(BadImage, match=r'number 7: not an image'):
        decode_image(Record('number 7', b'', (), None))


def test_stored_size_reads_the_header_where_the_record_does_not_tell(tmp_path):
    stored = encoded(Image.new('RGB', (6, 4)), 'PNG')
    assert stored_size(Record('x', stored, (), None)) == (6, 4)
    assert stored_size(Record('x', tmp_path / 'never opened', (), (3, 2))) == (3, 2)
    with pytest.raises(BadImage, match=r'gone.png: no such file'):
        stored_size(Record('x', tmp_path / 'gone.png', (), None))


def test_resize_same_size_is_identity():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(resize_image(image, (7, 5)), image)


def test_resize_squashes_to_width_height():
    image = np.zeros((40, 20, 3), np.uint8)
    image[:, 10:] = 200
    small = resize_image(image, (2, 3))
    assert small.shape == (3, 2, 3)
    assert (small[:, 0] < 60).all() and (small[:, 1] > 140).all()


def test_mask_is_the_union_with_ignore_outside():
    left, right, ignore = (np.zeros((4, 6)) for _ in range(3))
    left[:, 0], right[:, 5], ignore[0] = 1, 255, 255
    pairs = ((png(left), None), (png(right), png(ignore)))
    mask = decode_mask(Record('x', b'', (), None, masks=pairs), (6, 4))
    np.testing.assert_array_equal(mask, [[1, 255, 255, 255, 255, 1]] + [[1, 0, 0, 0, 0, 1]] * 3)


def test_mask_is_resized_by_nearest():
    grey = np.random.default_rng(0).integers(0, 2, (13, 17)) * 9
    mask = decode_mask(Record('x', b'', (), None, masks=((png(grey), None),)), (8, 5))
    rows = [int(y * 13 / 5) for y in range(5)]
    columns = [int(x * 17 / 8) for x in range(8)]
    np.testing.assert_array_equal(mask, grey[np.ix_(rows, columns)] > 0)


def test_bad_masks_are_named(tmp_path):
    with pytest.raises(DataError, match=r'x: has no mask'):
        decode_mask(Record('x', b'', (), None), (4, 4))
    (tmp_path / 'text.png').write_text('hello')
    for name, said in {'gone.png': 'no such file', 'text.png': 'not an image'}.items():
        with pytest.raises(DataError, match=f'{name}: {said}'):
            decode_mask(Record('x', b'', (), None, masks=((tmp_path / name, None),)), (4, 4))
    with pytest.raises(DataError, match='mask x: '):
        decode_mask(Record('x', b'', (), None, masks=((b'', None),)), (4, 4))


@pytest.mark.skipif('WSOL_DATA' not in os.environ, reason='WSOL_DATA is not set: no real images')
def test_turned_photos_are_the_upright_ones():
    """Bit for bit: then class, maps and boxes are, too."""
    source = WsolFolder(Path(os.environ['WSOL_DATA']) / 'imagenette', 'test')
    for k in range(24):
        upright = decode_image(source[k])[:168]
        orientation = 1 + k % 8
        back = {6: 8, 8: 6}.get(orientation, orientation)
        stored = tagged(np.ascontiguousarray(SHOWN[back](upright)), orientation)
        record = of(stored, (224, 168), DISPLAYED)
        np.testing.assert_array_equal(decode_image(record), upright)
        if orientation >= 5:
            with pytest.raises(DataError, match=r'is 168x224 with config\.data'):
                decode_image(of(stored, (224, 168)))


VALUES = np.array([[0, 1, 20], [255, 7, 0]], np.uint8)


def indexed(values, colours=256, **options):
    image = Image.fromarray(values, 'P')
    image.putpalette(RNG.integers(0, 256, 3 * colours, np.uint8).tobytes())
    return encoded(image, 'PNG', **options)


def test_the_values_of_a_label_map_are_indices_and_greys(tmp_path):
    (tmp_path / 'map.png').write_bytes(indexed(VALUES))
    for stored in (tmp_path / 'map.png', png(VALUES), indexed(VALUES, transparency=0)):
        found = read_label_map(stored)
        assert found.dtype == np.uint8 and found.flags.writeable
        np.testing.assert_array_equal(found, VALUES)
    few = VALUES % 16  # which Pillow stores in 4 bits
    np.testing.assert_array_equal(read_label_map(indexed(few, 16, bits=4)), few)


@pytest.mark.parametrize('orientation', range(2, 9))
def test_a_label_map_is_turned_as_its_record_says(orientation):
    stored = tagged(VALUES, orientation)
    np.testing.assert_array_equal(read_label_map(stored), VALUES)
    np.testing.assert_array_equal(read_label_map(stored, DISPLAYED), SHOWN[orientation](VALUES))


def chunk(kind, content):
    ends = zlib.crc32(kind + content).to_bytes(4, 'big')
    return len(content).to_bytes(4, 'big') + kind + content + ends


def grey_of_4_bits():
    """Two pixels, 1 and 2, of which Pillow makes 17 and 34."""
    header = struct.pack('>2I5B', 2, 1, 4, 0, 0, 0, 0)
    chunks = {b'IHDR': header, b'IDAT': zlib.compress(b'\0\x12'), b'IEND': b''}
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*each) for each in chunks.items())


@pytest.mark.parametrize(
    ('stored', 'fault'),
    [
        (grey_of_4_bits(), 'a PNG of mode L;4; '),
        (png(PICTURE), 'a PNG of mode RGB; a label map is a PNG with a palette, or with greys'),
        (encoded(Image.new('1', (3, 2)), 'PNG'), 'a PNG of mode 1; '),
        (encoded(Image.new('I;16', (3, 2)), 'PNG'), 'a PNG of mode I;16B; '),
        (encoded(Image.new('L', (3, 2)), 'JPEG'), 'in the format JPEG; '),
        (indexed(VALUES)[:-20], 'damaged'),
        (b'not an image', 'not an image that can be decoded'),
    ],
)
def test_a_label_map_that_keeps_no_values_is_refused(tmp_path, stored, fault):
    file = tmp_path / 'map.png'
    file.write_bytes(stored)
    with pytest.raises(DataError) as error:
        read_label_map(file)
    assert str(error.value).startswith(f'label map {file}: {fault}')
    with pytest.raises(DataError, match='label map of a: '):
        read_label_map(stored, name='of a')


def test_label_maps_do_not_leave_the_data_set(tmp_path):
    inside = tmp_path / 'data'
    inside.mkdir()
    (tmp_path / 'map.png').write_bytes(indexed(VALUES))
    (inside / 'map.png').symlink_to(tmp_path / 'map.png')
    with pytest.raises(DataError, match='leaves the data set'):
        read_label_map(inside / 'map.png', Decoding(roots=(inside.resolve(),)))
    with pytest.raises(DataError, match='no such file'):
        read_label_map(inside / 'none.png')
