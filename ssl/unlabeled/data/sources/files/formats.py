"""Which files are images, those whose ending belongs to a format that PIL opens here, and which are videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

Image.preinit()  # first what is common: PIL tries its formats in the order in which they came, for every file

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:  # an extra
    pillow_heif = None  # type: ignore[assignment]

# PIL knows them and has no pixels of them: it needs other programs (Ghostscript), or reads no more than their headers
_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_COMMON = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
# endings that other programs use for other things (point clouds, installers, circuit boards, workouts ...)
_DOUBTFUL = {"blp", "bw", "cur", "dcx", "fit", "fits", "flc", "fli", "ftc", "ftu", "gbr", "icb", "im", "msp", "pcd",
             "pxr", "ras", "rgb", "rgba", "vda", "vst"}
_VIDEOS = ("mp4", "mov", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv", "flv", "3gp", "ogv", "ts", "mts", "m2ts")
_HEIF = {".heic", ".heics", ".heif", ".heifs", ".hif"}


def _extensions() -> tuple[str, ...]:
    readable = {ending[1:] for ending, form in Image.registered_extensions().items()
                if (form in Image.OPEN or form == "MPO") and form not in _NO_PIXELS}
    return (*_COMMON, *sorted(readable.difference(_COMMON)))


EXTENSIONS = _extensions()  # small letters, without the dot; the common ones first


def is_image(path: str, ending: str) -> bool:
    """Say whether a file with this ending (small letters, without the dot) is an image; few are opened for it."""
    return ending in EXTENSIONS and (ending not in _DOUBTFUL or _opens(path))


def _opens(path: str) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # decoders raise almost anything
        return False


def cure(endings: set[str]) -> str:
    """Return what to install to read files with these endings (with their dot), in brackets; nothing if that is not it.
    """
    if endings & _HEIF and pillow_heif is None:
        return " (to read HEIC: pip install pillow-heif)"
    if ".avif" in endings:
        return " (to read AVIF: pip install --upgrade pillow)"
    return ""


def is_video(path: str, ending: str) -> bool:
    """Say whether a file with this ending (small letters, without the dot) is a video; few are opened for it."""
    return ending in _VIDEOS and (ending != "ts" or _is_transport_stream(path))


def _is_transport_stream(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"G"  # else it is a program in TypeScript
    except OSError:
        return False


class Kind(NamedTuple):
    """A kind of files.

    noun: what to call one. endings: the common ones first. accepts: see `is_image`. cure: see `cure`.
    """

    noun: str
    endings: tuple[str, ...]
    accepts: Callable[[str, str], bool]
    cure: Callable[[set[str]], str]


IMAGES = Kind("image", EXTENSIONS, is_image, cure)
VIDEOS = Kind("video", _VIDEOS, is_video, lambda _: "")
