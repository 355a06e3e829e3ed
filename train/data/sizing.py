"""At what size and in how many channels images are kept."""

from collections import Counter
from collections.abc import Iterable, Iterator

from cluster.dataset import DatasetMeta, Storage
from cluster.errors import DataError
from cluster.images import MAX_SIDE, ImageHeader, ImageSpec
from train.data.decoding import Likeness, read_headers
from train.data.gathering import BadImagesError
from train.data.options import IngestOptions, Watcher
from train.data.sources.source import Payload, Pictures, PixelPictures, Source, shorten
from train.data.workers import Workers

_PIXELS_LIMIT = 2 * 2**30
"""Decoded images of more bytes than this stay encoded, unless the user says otherwise."""


def guess_spec(
    source: Source, options: IngestOptions, parent: DatasetMeta | None
) -> tuple[ImageSpec, Likeness | None] | None:
    """What images become: by the user, the version that is added to, or the first image.

    Returns:
        With what is taken for granted of all images, so that they need not be opened twice; None
        if the first one cannot be read, or is larger than a model's images can be.

    Raises:
        DataError: another size, number of channels or way of resizing was named than the version
            has.
    """
    if parent is not None:
        _check_same(options, parent)
        return parent.image, None
    if options.size is not None and options.channels is not None:
        return _spec(source, options, options.size, options.channels), None
    first = read_headers(next(source.parts["train"].pictures.chunks())[:1])[0]
    if not isinstance(first, ImageHeader):
        return None
    if options.size is None and max(first.width, first.height) > MAX_SIDE:
        return None
    size = (first.width, first.height)
    likeness = Likeness(
        size=size if options.size is None else None,
        gray=options.channels is None and first.channels == 1,
    )
    channels = options.channels or first.channels
    return _spec(source, options, options.size or size, channels), likeness


def choose_spec(
    source: Source, options: IngestOptions, workers: Workers, watcher: Watcher
) -> ImageSpec:
    """What images become, by a look at the header of each.

    Raises:
        DataError: images have several sizes and none was named.
        BadImagesError: no image can be read.
    """
    headers = _survey(source, workers, watcher)
    size = options.size or _only_size(source, headers)
    any_color = any(header.channels == 3 for header in headers)
    return _spec(source, options, size, options.channels or (3 if any_color else 1))


def _spec(
    source: Source, options: IngestOptions, size: tuple[int, int], channels: int
) -> ImageSpec:
    width, height = size
    return ImageSpec.decode(
        {
            "width": width,
            "height": height,
            "channels": channels,
            "resize": options.resize or "crop",
        },
        f"images of {source.description}",
    )


def choose_storage(
    options: IngestOptions, spec: ImageSpec, rows: int, parent: DatasetMeta | None
) -> Storage:
    """``pixels`` or ``encoded``.

    Raises:
        DataError: another storage was named than that of the version that is added to.
    """
    if parent is not None:
        if options.storage not in ("auto", parent.storage):
            raise DataError(
                f"--storage {options.storage}: {parent.name}@{parent.version} keeps "
                f"{parent.storage}, and so does what is added to it"
            )
        return parent.storage
    if options.storage != "auto":
        return options.storage
    channels, height, width = spec.shape
    return "encoded" if rows * channels * height * width > _PIXELS_LIMIT else "pixels"


def _check_same(options: IngestOptions, parent: DatasetMeta) -> None:
    image = parent.image
    asked = {
        "--size": (options.size, (image.width, image.height)),
        "--channels": (options.channels, image.channels),
        "--resize": (options.resize, image.resize),
    }
    for option, (given, there) in asked.items():
        if given not in (None, there):
            raise DataError(
                f"{option}: {parent.name}@{parent.version} has {_text(there)}, "
                f"and so has what is added to it; leave out {option}"
            )


def _survey(source: Source, workers: Workers, watcher: Watcher) -> list[ImageHeader]:
    """The headers of all images that have one; bad ones are left to those who decode.

    Raises:
        BadImagesError: all are bad.
    """
    found: list[ImageHeader] = []
    bad: list[tuple[str, str]] = []
    seen = 0
    for part in source.parts.values():
        row = 0
        for headers in workers.map(read_headers, _payloads(part.pictures)):
            for header in headers:
                if isinstance(header, ImageHeader):
                    found.append(header)
                else:
                    bad.append((part.pictures.name(row), header))
                row += 1
            watcher.advance("looking at images", seen + row, len(source))
        seen += row
    if not found:
        raise BadImagesError(bad, len(source))
    return found


def _payloads(pictures: Pictures) -> Iterator[Payload]:
    if isinstance(pictures, PixelPictures):
        # One image tells of all.
        yield pictures.images[:1]
    else:
        yield from pictures.chunks()


def _only_size(source: Source, headers: Iterable[ImageHeader]) -> tuple[int, int]:
    sizes = Counter((header.width, header.height) for header in headers)
    if len(sizes) == 1:
        return next(iter(sizes))
    listed = [f"{_text(size)} ({count})" for size, count in sizes.most_common()]
    side = max(1, min(min(size) for size in sizes))
    raise DataError(
        f"{source.description} holds images of {len(sizes)} sizes: {shorten(listed)}; "
        f"choose one for all of them, such as --size {min(side, MAX_SIDE)}"
    )


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
