"""Rasterize the sticker shapes once: `python -m data.sprites.make icons.json`.

`icons.json` comes from the npm package @iconify-json/fluent-emoji-high-contrast (MIT, Microsoft);
letters and digits are drawn in DejaVu Sans Bold, which matplotlib ships. Needs resvg_py.
"""

import io
import json
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rlgenkit.worlds.prompts import GLYPHS
from rlgenkit.worlds.scenes import SPRITES

ICONS = {
    "cat": "black-cat",
    "heart": "heart-suit",
    "cloud": "cloud",
    "tree": "deciduous-tree",
    "droplet": "droplet",
    "star": "star",
    "umbrella": "umbrella",
    "teapot": "teapot",
    "crab": "crab",
    "airplane": "airplane",
    "note": "musical-note",
    "ball": "black-circle",
}
BOX = 62  # px of the 64 px tile that a shape's longer side fills


def fit(mask: Image.Image) -> np.ndarray:
    """Crop a mask to its ink, scale its longer side to BOX px and center it in a 64 px tile."""
    ink = mask.crop(mask.getbbox())
    scale = BOX / max(ink.size)
    ink = ink.resize([max(1, round(v * scale)) for v in ink.size], Image.Resampling.LANCZOS)
    tile = Image.new("L", (64, 64))
    tile.paste(ink, ((64 - ink.width) // 2, (64 - ink.height) // 2))
    return np.asarray(tile)


def icon(body: str) -> Image.Image:
    """The alpha mask of an icon's SVG body, at 256 px."""
    import resvg_py

    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="256" height="256" viewBox="0 0 32 32">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg.replace("currentColor", "#000"))
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA").getchannel("A")


def glyph(letter: str) -> Image.Image:
    """The mask of a letter, at about 200 px."""
    from matplotlib import font_manager

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans:bold"), 200)
    tile = Image.new("L", (300, 300))
    ImageDraw.Draw(tile).text((50, 20), letter, fill=255, font=font)
    return tile


def main(path: str) -> None:
    """Write data/sprites/stickers.png, one 64 px tile per shape in the order of SHAPES."""
    with open(path, encoding="utf-8") as file:
        icons = json.load(file)["icons"]
    masks = [fit(icon(icons[name]["body"])) for name in ICONS.values()]
    masks += [fit(glyph(letter)) for letter in GLYPHS]
    SPRITES.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(masks, 1)).save(SPRITES, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
