"""From the bytes of an image file to uint8 RGB, or to the numbers of a mask."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

import unlabeled.data.sources.files.formats  # noqa: F401 - with it PIL knows all formats that are installed
from unlabeled.data.sources.base import SYSTEM_ERRORS, CorruptSample, Pixels
from unlabeled.data.sources.files.levels import Levels, eight_bits

try:
    import simplejpeg
except ImportError:  # there is no wheel for some platforms
    simplejpeg = None

USUAL = Pixels()  # of folders of one's own
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 258, 262, 339  # tags of EXIF and TIFF
_METADATA = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where PIL puts what may hold the tag
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by the value of the orientation tag: [H, W, ...] -> upright
    2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(np.fliplr(x), -1), 8: np.rot90}
_BACK = {6: 8, 8: 6}  # the turns that are not their own inverses

# PIL refuses twice as many pixels, and below that a large image is no fault.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def decode(data: bytes, key: str, pixels: Pixels = USUAL) -> np.ndarray:
    """Return the image in `data` as uint8 RGB [H, W, 3], as PIL's convert("RGB") gives it.

    Transparency is dropped; of several frames or pages the first is taken. Gray of more than 8 bits follows
    `levels.eight_bits`, colours of 16 bits keep their high byte. The orientation tag is heeded or not as `pixels` says,
    in every format. Raises CorruptSample with `key` for bytes that do not decode to their end, and for values to which
    no rule applies. JPEG files are decoded by simplejpeg, to the same pixels in less time; of what it refuses PIL
    decides.
    """
    if not data:
        raise CorruptSample(key, "the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _turned(image, pixels.upright, lambda: _rgb(image, data, pixels.levels))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged bytes (OSError, SyntaxError, ...)
        if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
            raise
        raise CorruptSample(key, _reason(error, data)) from error


def decode_numbers(data: bytes, pixels: Pixels = USUAL) -> np.ndarray:
    """Return the numbers in a PNG file of at most 8 bits, gray or with a palette, as they are stored: uint8 [H, W].

    Raises ValueError for damaged files and for others, such as JPEG, whose losses make new numbers.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format != "PNG":
                raise ValueError(f"it is a {image.format} file, and only PNG keeps numbers as they are")
            if image.mode not in ("P", "L"):
                raise ValueError("one number per pixel is needed (gray or palette PNG), but its mode is " + image.mode)
            spread = {2: 85, 4: 17}.get(_png_bits(data), 1) if image.mode == "L" else 1  # 4 bits become 0, 17, 34 ...
            return _turned(image, pixels.upright, lambda: np.array(image) // np.uint8(spread))
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(_reason(error, data)) from error


def _turned(image: Image.Image, upright: bool, load: Callable[[], np.ndarray]) -> np.ndarray:
    """Return what `load` reads of an opened image, turned as its orientation tag says or as it is stored."""
    if image.format == "EPS":
        raise ValueError("a PostScript file, which is a program; convert it")
    turned_by_pil = image.format == "TIFF"  # while it loads them, and then the tag is gone
    tag = _orientation(image) if turned_by_pil else 1
    values = load()
    if not values.size:
        raise ValueError(f"it has no pixels ({values.shape[0]} x {values.shape[1]})")
    if upright and not turned_by_pil:
        tag = _orientation(image)
    elif not upright:
        tag = _BACK.get(tag, tag)
    else:
        tag = 1
    return np.ascontiguousarray(_TURNS[tag](values)) if tag in _TURNS else values


def _orientation(image: Image.Image) -> int:
    """Return the orientation tag of an image, from EXIF or XMP; 1, upright, if it has none that can be read."""
    if image.format != "TIFF" and _METADATA.isdisjoint(image.info):
        return 1
    try:
        tag = image.getexif().get(_ORIENTATION, 1)
        return int(tag) if tag in _TURNS else 1
    except Exception:  # of damaged metadata, which leave the pixels alone
        return 1


def _rgb(image: Image.Image, data: bytes, levels: Levels | None) -> np.ndarray:
    if image.format == "JPEG" and image.mode in ("RGB", "L"):  # other colours are converted in different ways
        pixels = _jpeg(data)
        if pixels is not None and pixels.shape == (image.height, image.width, 3):
            return pixels
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or (image.mode == "L" and _signed(image)):
        return np.repeat(_deep_gray(image, levels)[..., None], 3, axis=2)
    if levels is not None and _deep_colour(image, data):
        raise ValueError("colours of 16 bits, to which the data card's levels cannot be applied; convert it to 8 bits")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_gray(image: Image.Image, levels: Levels | None) -> np.ndarray:
    """Return gray levels, uint8 [H, W], of an image with one value per pixel of more than 8 bits, or with a sign."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    bits, white = tags.get(_BITS, (16,))[0], _ppm_white(image)
    values = np.asarray(image)
    if image.mode == "L":  # read by PIL as if it had no sign
        values = values.view(np.int8)
    elif image.format == "TIFF" and image.mode == "I" and not _signed(image):
        values = values.view(np.uint32)
    elif image.format == "PPM" and levels is not None and image.mode == "I":  # PIL has spread what is stored
        values = np.rint(values * (white / 65535)).astype(np.uint16)
    elif image.format in ("PNG", "PPM") and image.mode == "I":
        values = values.astype(np.uint16)
    elif image.format not in ("PNG", "TIFF", "JPEG2000") and image.mode != "F":
        values = values.astype(np.int32)  # other formats do not say if their 16 bits have a sign
    gray = eight_bits(values, levels, bits)
    return 255 - gray if tags.get(_PHOTOMETRIC) == 0 else gray


def _signed(image: Image.Image) -> bool:
    """Return whether an opened image is a TIFF file of signed integers."""
    return bool(getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (1,))[0] == 2)


def _deep_colour(image: Image.Image, data: bytes) -> bool:
    """Return whether an opened image, other than gray, has more than 8 bits per value."""
    if image.format == "PNG":
        return _png_bits(data) > 8
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(_BITS, (8,))) > 8
    return _ppm_white(image) > 255


def _png_bits(data: bytes) -> int:
    """Return the bits of one value in a PNG file. Raises ValueError if its header does not come first."""
    if data[12:16] != b"IHDR":
        raise ValueError("its header does not come first")
    return data[24]


def _ppm_white(image: Image.Image) -> int:
    """Return the number that is white in an opened PPM or PGM file; 255 for other files."""
    tile = getattr(image, "tile", None)  # of files
    if image.format != "PPM" or not tile:
        return 255
    arguments = tile[0][3]
    return arguments[1] if isinstance(arguments, tuple) else 65535 if arguments == "I;16B" else 255


def _jpeg(data: bytes) -> np.ndarray | None:
    if simplejpeg is None:
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # damaged, be it ever so little, or of a kind that it does not know
        return None


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        if data[:4] in (b"II*\0", b"MM\0*"):
            return "a damaged TIFF file, or of a kind that PIL does not read (half floats, unusual bands ...)"
        return "cannot identify image file"
    return str(error).partition(" <_io")[0] or type(error).__name__  # PIL names the object in memory
