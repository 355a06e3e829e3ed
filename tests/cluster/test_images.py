"""Whatever a person sends, the decoder gives what a person would see, or says why not."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cluster.images import (
    FORMATS,
    MAX_BYTES,
    ImageError,
    ImageSpec,
    decode_image,
    encode_png,
    fit_pixels,
    read_header,
)

GRAY = ImageSpec(height=4, width=4, channels=1)
RGB = ImageSpec(height=4, width=4, channels=3)
RED = (255, 0, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def solid(mode: str, color: Any, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, color)


def pixel(data: bytes, spec: ImageSpec = RGB) -> tuple[int, ...]:
    decoded = decode_image(data, spec)
    assert decoded.shape == spec.shape
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    return tuple(int(value) for value in decoded[:, 1, 1])


@pytest.mark.parametrize(
    ("image", "seen"),
    [
        (solid("L", 200), (200, 200, 200)),
        (solid("RGB", RED), RED),
        (solid("RGBA", (*RED, 255)), RED),
        (solid("RGBA", (*RED, 0)), (255, 255, 255)),
        (solid("LA", (0, 128)), (127, 127, 127)),
        (solid("1", 1), (255, 255, 255)),
        (solid("RGB", RED).convert("P"), RED),
    ],
    ids=["gray", "rgb", "opaque", "transparent", "half transparent", "bits", "palette"],
)
def test_png_modes(image: Image.Image, seen: tuple[int, ...]) -> None:
    assert pixel(encoded(image)) == pytest.approx(seen, abs=1)


def test_a_transparent_palette_is_laid_on_white() -> None:
    image = solid("RGB", RED).convert("P")
    assert pixel(encoded(image, transparency=image.getpixel((0, 0)))) == (255, 255, 255)


@pytest.mark.parametrize(("sample", "seen"), [(0, 0), (32896, 128), (65535, 255)])
def test_16_bit_samples_are_scaled(sample: int, seen: int) -> None:
    samples = np.full((4, 4), sample, np.uint16)
    assert pixel(encoded(Image.fromarray(samples)), GRAY) == (seen,)


@pytest.mark.parametrize(
    ("kind", "samples", "seen"),
    [
        (np.float32, [0, 0.2, 1], [0, 51, 255]),
        (np.float32, [np.nan, np.inf, 1], [0, 0, 255]),
        (np.float32, [-1, 51.4, 255], [0, 51, 255]),
        (np.float32, [0, 32896, 65535], [0, 128, 255]),
        (np.int32, [0, 1, 255], [0, 1, 255]),
        (np.int32, [0, 0, 1], [0, 0, 1]),
        (np.int32, [-5, 32896, 65535], [0, 128, 255]),
    ],
)
def test_white_of_32_bit_samples_is_told_by_the_brightest(
    kind: Any, samples: list[float], seen: list[int]
) -> None:
    data = encoded(Image.fromarray(np.array([samples], kind)), "TIFF")
    decoded = decode_image(data, ImageSpec(height=1, width=3, channels=1))
    assert decoded.ravel().tolist() == seen


def test_cmyk_jpeg() -> None:
    data = encoded(solid("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG", quality=95)
    red, green, blue = pixel(data)
    assert red > 200
    assert max(green, blue) < 60


def test_color_becomes_gray_by_luminance() -> None:
    assert pixel(encoded(solid("RGB", RED)), GRAY) == (76,)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(solid("RGB", (200, 200, 200), (16, 16)), kind, **options)
    assert pixel(data) == pytest.approx((200, 200, 200), abs=2)


def test_exif_orientation_is_applied() -> None:
    upright = solid("RGB", (0, 0, 0), (4, 4))
    upright.paste(RED, (0, 0, 4, 2))  # The upper half is red.
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "Rotate 90 degrees clockwise to view".
    decoded = decode_image(encoded(lying, "PNG", exif=exif), RGB)
    expected = decode_image(encoded(upright), RGB)
    np.testing.assert_array_equal(decoded, expected)


def test_the_first_frame_of_an_animation() -> None:
    frames = [solid("RGB", RED), solid("RGB", (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(data) == RED


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_a_plain_image_stays_plain(resize: Any) -> None:
    spec = ImageSpec(height=4, width=4, channels=1, resize=resize)
    decoded = decode_image(encoded(solid("L", 255, (8, 8))), spec)
    assert decoded.min() == decoded.max() == 255


def test_ways_of_resizing_a_wide_image() -> None:
    wide = solid("L", 0, (16, 4))
    wide.paste(255, (4, 0, 12, 4))  # White in the middle half.
    data = encoded(wide)
    by = {
        resize: decode_image(data, ImageSpec(height=4, width=4, channels=1, resize=resize))[0]
        for resize in ("crop", "pad", "stretch")
    }
    assert by["crop"].min() == 255, "the sides were cut off"
    assert by["pad"][0].max() == 0, "black above"
    assert by["pad"][1:3].max() > 200
    assert by["stretch"][:, 0].max() < 60
    assert by["stretch"][:, 2].min() > 200


def reason(data: bytes, **limits: int) -> tuple[str, str]:
    with pytest.raises(ImageError) as error:
        decode_image(data, RGB, **limits)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return error.value.reason, str(error.value)


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.7", b"<svg/>", b"\x80\x04K\x01."])
def test_no_image(data: bytes) -> None:
    kind, message = reason(data)
    assert kind == "format"
    assert "PNG, JPEG" in message


def test_an_image_of_a_format_that_is_not_allowed() -> None:
    assert reason(encoded(solid("RGB", RED), "PPM"))[0] == "format"


def test_too_many_bytes() -> None:
    assert reason(bytes(MAX_BYTES + 1)) == (
        "size",
        f"image of {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are allowed",
    )
    assert reason(bytes(11), max_bytes=10)[0] == "size"


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that unpacks to ``width * height`` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [6_000, 30_000, 1_000_000])
def test_a_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    data = _bomb(side, side)
    assert len(data) < 1000
    assert reason(data)[0] == "size"


def test_want_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert reason(encoded(solid("RGB", RED))) == ("size", "too large for the memory that is free")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_image(kind: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert reason(data[: int(len(data) * kept)])[0] in {"content", "format"}


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"]),
)
def test_no_bytes_get_past_the_error(data: bytes, start: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(start + data, RGB)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels: int) -> None:
    pixels: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(
        0, 256, (channels, 5, 7), dtype=np.uint8
    )
    spec = ImageSpec.decode({"height": 5, "width": 7, "channels": channels}, "spec")
    np.testing.assert_array_equal(decode_image(encode_png(pixels), spec), pixels)


def header(data: bytes) -> tuple[int, int, int]:
    found = read_header(io.BytesIO(data))
    return found.width, found.height, found.channels


@pytest.mark.parametrize(
    ("image", "kind", "channels"),
    [
        (solid("L", 0, (5, 3)), "PNG", 1),
        (solid("LA", (0, 9), (5, 3)), "PNG", 1),
        (solid("1", 0, (5, 3)), "TIFF", 1),
        (solid("I;16", 0, (5, 3)), "PNG", 1),
        (solid("RGB", RED, (5, 3)), "WEBP", 3),
        (solid("CMYK", (0, 0, 0, 0), (5, 3)), "JPEG", 3),
        (solid("RGB", RED, (5, 3)).convert("P"), "GIF", 3),
    ],
)
def test_a_header_tells_size_and_kind(image: Image.Image, kind: str, channels: int) -> None:
    assert header(encoded(image, kind)) == (5, 3, channels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_headers_size_is_that_of_the_upright_image(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(solid("RGB", RED, (40, 24)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).size
    assert header(data) == (*upright, 3)
    spec = ImageSpec.decode({"width": upright[0], "height": upright[1], "channels": 3}, "spec")
    assert decode_image(data, spec).shape == spec.shape


@pytest.mark.parametrize("data", [b"", b"hello", _bomb(30_000, 30_000)])
def test_a_header_that_cannot_be_used(data: bytes) -> None:
    with pytest.raises(ImageError):
        header(data)


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given_channels", [1, 3])
def test_pixels_are_fitted_as_files_are(resize: Any, channels: Any, given_channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (given_channels, 9, 14), dtype=np.uint8)
    spec = ImageSpec(height=6, width=5, channels=channels, resize=resize)
    np.testing.assert_array_equal(fit_pixels(pixels, spec), decode_image(encode_png(pixels), spec))


def test_pillows_warnings_are_silent_and_others_are_not() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0"
    data = encoded(solid("RGB", RED, (16, 16)), "JPEG", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert caught, "Pillow warns of this"
        caught.clear()
        decode_image(data, RGB)
        assert not caught
        warnings.warn("ours", stacklevel=1)
        assert len(caught) == 1


def test_what_was_asked_of_warnings_survives_many_threads() -> None:
    data = encoded(solid("RGB", RED))
    with warnings.catch_warnings():
        decode_image(data, RGB)
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: decode_image(data, RGB), range(400)))
        assert list(warnings.filters) == before
