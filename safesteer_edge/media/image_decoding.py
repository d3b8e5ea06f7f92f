"""Bytes of an image file to RGB pixels as a projector takes them, by Pillow, under limits.

Runs in a decoding process, which can be ended when a file takes too long: no clock here could
interrupt Pillow's C code. Copies of a full-size picture are what costs memory,
so it is scaled down as early as its format allows. Source of the modes: Pillow's concepts page.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageMode,  # noqa: F401
    ImagePalette,  # noqa: F401
    JpegImagePlugin,
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import Answer, answers
from safesteer_edge.media.pixel_bytes import JPEG_START, PNG_START, pixel_bytes

# Named, not left to Image.init(): it would load some forty more, and no file can be read once the
# decoding process has shut itself off. MPO: what some phones call a JPEG.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
HEIF_PACKAGE: Final = "pillow_heif"  # an extra's
MAX_PIXELS = 50_000_000
# libwebp keeps three canvases of four bytes a pixel beside Pillow's own.
MAX_WEBP_PIXELS = 32_000_000
MIN_SIDE = 2
# More than any projector of this llama.cpp makes use of but one (its default limits are 4,096 and
# 16,384 tokens of 28 × 28 pixels); a picture of it takes 38 MB.
MAX_SEEN_PIXELS = 12_845_056
MAX_ASPECT_RATIO = 20.0

_JPEG_END = b"\xff\xd9"
_FRAME = re.compile(b"\xff[\xc0-\xc2\xc9\xca]..\x08....(.)", re.DOTALL)  # a component count
# Behind it: each component and its tables, first and last coefficient, and how many bits are left.
_SCAN = re.compile(b"\xff\xda\0[\x06\x08\x0a\x0c]([\1-\4])")
# Formats that are told by their first bytes alone.
_STARTS = {
    PNG_START: "a PNG",
    JPEG_START: "a JPEG",
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
}
_ORIENTATION = 0x0112
# TIFF's tags, and values of theirs.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_WHITE = (255, 255, 255)
# Large pictures are first shrunk by whole factors (boxes), to no less than this times the target:
# 94 ms instead of 165 at 12 megapixels (measured), and less than one grey level of difference.
_REDUCING_GAP = 3.0


@dataclass(frozen=True, slots=True)
class ImageFit:
    """square_side: each picture is letterboxed to this side; None: pictures keep their shape.

    max_pixels: of pictures that keep their shape; larger ones are scaled down, none is scaled up.
    """

    square_side: int | None = None
    max_pixels: int = MAX_SEEN_PIXELS

    @classmethod
    def asked(cls, request: dict[str, Any]) -> ImageFit:
        """The one of a request."""
        return cls(request["square_side"], request["max_pixels"])

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """The size that a picture itself is scaled to, without the white around it."""
        if self.square_side is not None:
            return letterboxed_size(width, height, self.square_side)
        scale = math.sqrt(self.max_pixels / (width * height))
        if scale >= 1:
            return width, height
        return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))

    def extreme_sizes(self) -> list[tuple[int, int]]:
        """The largest pictures that a projector is handed, of several shapes."""
        if self.square_side is not None:
            return [(self.square_side, self.square_side)]
        sizes: list[tuple[int, int]] = []
        for aspect_ratio in (1, 1.5, 2, 4, 10, MAX_ASPECT_RATIO):
            width = math.floor(math.sqrt(self.max_pixels * aspect_ratio))
            height = math.floor(self.max_pixels / width)
            sizes += [(width, height), (height, width)]
        return sizes


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """image: RGB, upright, as a projector gets it. width, height: of the file, upright."""

    image: Image.Image
    width: int
    height: int

    @property
    def header(self) -> dict[str, list[int]]:
        """The sizes, as they go with the pixels from process to process."""
        return {"size": list(self.image.size), "original_size": [self.width, self.height]}


def image_decoder(options: dict[str, Any]) -> Answer:
    """What decodes in a process of its own. heif: HEIC too, whose extra is there."""
    Image.preinit()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the decoding process may start none
    if options["heif"]:
        from pillow_heif import register_heif_opener

        register_heif_opener(decode_threads=1, thumbnails=False)

    def decode(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        picture = decode_image(data, name=request["name"], fit=ImageFit.asked(request))
        return picture.header, picture.image.tobytes()

    return answers(decode)


def is_heif(data: bytes) -> bool:
    """By its mark. Some AVIF files bear it too."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def decode_image(data: bytes, *, name: str, fit: ImageFit) -> Picture:
    """Decode a picture: first frame, turned upright, transparency on white, metadata dropped.

    name: for messages. Raises MediaError if it is too large, too oblong, damaged or no picture.
    """
    data = pixel_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata is dropped, not talked about
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                return _opened(data, name, fit)
            except OSError:
                if not data.startswith(JPEG_START):
                    raise
                return _without_end(data, name, fit)
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(
            f"image {name} has more than the limit of {MAX_PIXELS} pixels; shrink it first"
        ) from error
    except UnidentifiedImageError as error:
        raise MediaError(f"cannot use {name} as an image: {_why_unknown(data)}") from error
    except MemoryError as error:
        raise MediaError(
            f"image {name} needs too much memory to decode; shrink it first"
        ) from error
    except Exception as error:  # damaged files end in struct.error, KeyError, … inside Pillow
        raise MediaError(
            f"cannot decode image {name}: it is damaged or incomplete; get it or save it again"
        ) from error


def fit_image(image: Image.Image, fit: ImageFit) -> Picture:
    """A picture that was drawn upright, as a projector gets it."""
    width, height = image.size
    scaled = _scaled(image.convert("RGB"), fit.scaled_size(width, height))
    if fit.square_side is not None:
        scaled = letterbox_image(scaled, fit.square_side)
    return Picture(scaled, width, height)


# -- A picture on a white square: the geometry of projectors that take one square of fixed size ----
# The one place for it: the runtime prepares pictures with it, and the recipe of the default
# projector trains on pictures that went through it. Change nothing here without training again.


def letterboxed_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of the picture inside the square: one is `side`, neither is below 1."""
    longest = max(width, height)
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))


def letterbox_image(image: Image.Image, side: int) -> Image.Image:
    """Scale an RGB picture up or down to fit, its aspect kept, and centre it on a white square."""
    size = letterboxed_size(image.width, image.height, side)
    image = _scaled(image, size)
    if size == (side, side):
        return image
    square = Image.new("RGB", (side, side), _WHITE)
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


# -- decoding --------------------------------------------------------------------------------------


def _formats() -> tuple[str, ...]:
    return (*FORMATS, "HEIF") if "HEIF" in Image.OPEN else FORMATS


def _why_unknown(data: bytes) -> str:
    """What is wrong with a file that no format took, and what to do."""
    if is_heif(data) and "HEIF" not in _formats():
        return "HEIC needs pillow-heif; pip install 'safesteer-edge[heic]', or save it as JPEG"
    is_webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    known = next((said for start, said in _STARTS.items() if data.startswith(start)), None)
    known = "a WebP" if is_webp else known
    if known:
        return f"it is {known} that is damaged, or of a rare kind; save it again as PNG"
    return f"it is none of {', '.join(_formats())}, or damaged; convert it"


def _without_end(data: bytes, name: str, fit: ImageFit) -> Picture:
    """The picture of a JPEG that lacks nothing but its end marker.

    libjpeg makes up what is missing. So whatever stands in for it must make no difference.
    """
    data = data.rstrip(b"\xff")
    if not _has_all_scans(data):
        raise OSError("incomplete")
    picture = _opened(data + _JPEG_END, name, fit)
    n_restart = max((data.rfind(bytes((0xFF, 0xD0 + n))), n) for n in range(8))[1]
    restarts = [bytes((0xFF, 0xD0 + (n_restart + n) % 8)) for n in range(1, 9)]
    for noise in (bytes(range(1, 255)) * 16, bytes(4_096), b"\xff\0" * 4_096):
        other = noise + b"".join(marker + noise for marker in restarts)
        if _opened(data + other + _JPEG_END, name, fit).image != picture.image:
            raise OSError("incomplete")
    return picture


def _has_all_scans(data: bytes) -> bool:
    """Whether a JPEG's scans hold every bit of every coefficient: progressive ones add them up."""
    bits_left: dict[tuple[int, int], int] = {}
    for scan in _SCAN.finditer(data):
        components = data[scan.end() : scan.end() + 2 * scan[1][0] : 2]
        first, last, bits = data[scan.end() + 2 * scan[1][0] :][:3].ljust(3, b"\xff")
        bits_left |= {(c, k): bits & 15 for c in components for k in range(first, last + 1)}
    frame = _FRAME.search(data)
    return frame is not None and [*bits_left.values()] == [0] * (64 * frame[1][0])


def _opened(data: bytes, name: str, fit: ImageFit) -> Picture:
    with Image.open(BytesIO(data), formats=_formats()) as opened:
        return _decode(opened, name, fit)


def _decode(opened: Image.Image, name: str, fit: ImageFit) -> Picture:
    width, height = opened.size
    _check_size(width, height, name, opened.format)
    size = fit.scaled_size(width, height)
    if isinstance(opened, JpegImagePlugin.JpegImageFile):
        # The decoder itself can leave out detail: an eighth of the work for a phone's picture.
        opened.draft(None, (3 * size[0], 3 * size[1]))
    opened.load()
    image = _on_white(_scaled(_plain(opened, name), size))
    orientation = _orientation(opened)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
    if fit.square_side is not None:
        image = letterbox_image(image, fit.square_side)
    return Picture(image, width, height)


def _check_size(width: int, height: int, name: str, format_name: str | None) -> None:
    if min(width, height) < MIN_SIDE:
        raise MediaError(f"image {name} is {width}×{height}; each side needs {MIN_SIDE} pixels")
    limit = MAX_WEBP_PIXELS if format_name == "WEBP" else MAX_PIXELS
    if width * height > limit:
        raise MediaError(
            f"image {name} is {width}×{height}; the limit is {limit} pixels; shrink it first"
        )
    if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        raise MediaError(
            f"image {name} is {width}×{height}; one side may be at most "
            f"{MAX_ASPECT_RATIO:g} times the other; crop it first"
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none that can be read."""
    with contextlib.suppress(Exception):  # whatever a damaged block provokes in its parser
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _plain(image: Image.Image, name: str) -> Image.Image:
    """The same in 8 bits: L, LA, RGB or RGBA, which can be scaled."""
    mode = image.mode
    if mode.startswith("I"):
        return _grey_in_8_bits(image, name)
    if mode == "F":
        raise MediaError(f"image {name} is of floating-point numbers; convert it to 8 bits")
    if "transparency" in image.info or mode in ("PA", "RGBa", "La"):
        return image.convert("RGBA")
    if mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("L" if mode == "1" else "RGB")


def _grey_in_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Deeper grey, which Pillow would cut off at 255: all white.

    Up to 16 bits have a black and a white of their own; others are scaled by what they hold.
    """
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    if image.mode != "I":
        shift = tags.get(_BITS, (16,))[0] - 8  # 12 bits come in 16
        turned = 255 if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else 0
        deep = image.convert("I")
        grey = deep.point([min(value >> shift, 255) ^ turned for value in range(1 << 16)], "L")
        if "transparency" not in image.info:
            return grey
        clear = image.info["transparency"]
        alpha = deep.point([255 * (value != clear) for value in range(1 << 16)], "L")
        return Image.merge("LA", (grey, alpha))
    low, high = cast("tuple[int, int]", image.getextrema())
    is_wrapped = low < 0 and tags.get(_SAMPLE_FORMAT, (1,))[0] == _UNSIGNED
    if low == high or is_wrapped:
        raise MediaError(f"image {name} is of 32-bit numbers; convert it to 8 bits")
    scale = 255 / (high - low)
    return image.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def _scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA"):
        return image.convert("RGB")
    white = Image.new("RGB", image.size, _WHITE)
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white
