"""A part of an image for training: the same picture as serving decodes, and quickly."""

import io

import numpy as np
import pytest
from PIL import Image

from cluster.images import Box, ImageError, ImageSpec, crop_pixels, decode_crop, decode_image

SPEC = ImageSpec(height=32, width=48, channels=3, resize="stretch")


def whole(width: int, height: int) -> Box:
    return (0, 0, width, height)


def scene(width: int, height: int) -> Image.Image:
    """Smooth, and different in every corner."""
    down, across = np.mgrid[0:height, 0:width]
    red, green = 255 * down / height, 255 * across / width
    blue = 127 * (1 + np.sin(across / width * 6) * np.cos(down / height * 4))
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_image_is_what_serving_sees(channels: int) -> None:
    spec = SPEC.model_copy(update={"channels": channels})
    data = encode(scene(150, 100), "PNG")
    np.testing.assert_array_equal(decode_crop(data, spec, whole), decode_image(data, spec))


def test_a_crop_is_that_part_of_the_picture() -> None:
    image = scene(200, 160)
    part = decode_crop(encode(image, "PNG"), SPEC, lambda w, h: (w // 2, h // 4, w, h // 2))
    alone = decode_image(encode(image.crop((100, 40, 200, 80)), "PNG"), SPEC)
    assert np.abs(part.astype(int) - alone).max() <= 1


@pytest.mark.parametrize("size", [(401, 299), (1601, 1199)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_small_to_the_same_picture(
    size: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(scene(*size), "JPEG", quality=95, exif=exif)
    sizes = []

    def lower_right(width: int, height: int) -> Box:
        sizes.append((width, height))
        return (width // 3, height // 3, width, height)

    quick = decode_crop(data, SPEC, lower_right)
    assert sizes == [size if orientation == 1 else size[::-1]]
    # A PNG has no quick way.
    upright = np.asarray(
        Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
        if orientation == 6
        else Image.open(io.BytesIO(data))
    )
    slow = decode_crop(encode(Image.fromarray(upright), "PNG"), SPEC, lower_right)
    difference = np.abs(quick.astype(int) - slow)
    assert difference.mean() < 1.5
    assert difference.max() < 16
    np.testing.assert_array_equal(quick, decode_crop(data, SPEC, lower_right))


def test_a_crop_of_pixels_is_the_crop_of_their_png() -> None:
    image = scene(SPEC.width, SPEC.height)
    pixels = np.asarray(image).transpose(2, 0, 1)

    def middle(width: int, height: int) -> Box:
        return (width // 4, height // 4, width // 2, height)

    expected = decode_crop(encode(image, "PNG"), SPEC, middle)
    np.testing.assert_array_equal(crop_pixels(pixels, middle), expected)


def test_what_is_refused_is_refused_of_crops_too() -> None:
    data = encode(scene(64, 64), "PNG")
    for options, reason in (({"max_bytes": 10}, "size"), ({"max_pixels": 4000}, "size")):
        with pytest.raises(ImageError) as caught:
            decode_crop(data, SPEC, whole, **options)
        assert caught.value.reason == reason
    with pytest.raises(ImageError, match="damaged image"):
        decode_crop(data[: len(data) // 2], SPEC, whole)
