"""A font that has the letters of a text: people and files are not named in English alone."""
import bisect
import functools
import importlib.util
from pathlib import Path

from PIL import ImageFont

# Chinese, Japanese and Korean, by file name: Pillow looks for them in the system's folders of fonts.
SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "SourceHanSans.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc",  # Linux
                "DroidSansFallbackFull.ttf", "msyh.ttc", "simsun.ttc", "malgun.ttf",                   # Windows
                "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf")                           # macOS


def fit_font(text, size):
    """-> (font, text): a font with all letters of the text; where there is none, the missing ones become \\uXXXX."""
    for name in ("", *SYSTEM_FONTS):
        font = load(name, size)
        if font is not None and not any(lacks(font, letter) for letter in text):
            return font, text
    font = load("", size)
    return font, "".join(f"\\u{ord(letter):04x}" if lacks(font, letter) else letter for letter in text)


@functools.cache
def load(name, size):
    """A font of the system, None where it has no such one; "": DejaVu Sans, which comes with matplotlib."""
    if not name:
        package = importlib.util.find_spec("matplotlib")  # importing it would take half as long as importing torch
        name = package and Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if not name or not name.is_file():
            return ImageFont.load_default(size)  # Latin letters only, no accents
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@functools.cache
def lacks(font, letter):
    """Whether the font draws its sign for a missing letter; U+FFFF is no letter, so every font lacks it."""
    if not letter.isprintable():  # control characters, and the surrogates that stand for bytes that are no UTF-8
        return True
    if letter == " ":  # as empty as the missing sign of some fonts
        return False
    mask, missing = font.getmask(letter), font.getmask("\uffff")
    return mask.size == missing.size and bytes(mask) == bytes(missing)


def shorten(text, font, width):
    """The text, with its end replaced by an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = bisect.bisect(range(1, len(text) + 1), width, key=lambda kept: font.getlength(text[:kept] + "…"))
    return text[:kept] + "…"
