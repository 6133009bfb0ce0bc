"""Lines of text in fonts that look like handwriting, for a start before training on real ones.

    python examples/render_lines.py texts.txt rendered/ --font /usr/share/fonts/script.ttf --count 2000
    mdlstm train --data rendered/ --task transcribe --steps 3000 -o runs/rendered
    mdlstm train --data pages/ --task transcribe --init runs/rendered

Each image holds one line of the file of texts, in one of the fonts, slanted and on uneven paper; labels.tsv
holds the texts. Characters that a font lacks are left out of its lines.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT = 64  # pixels
MAX_SLANT = 0.4  # columns by which a row moves against the one below


def render(text, font, rng):
    """An image (H, W) uint8 of a line, 64 pixels high."""
    left, top, right, bottom = font.getbbox(text)
    margin = rng.integers(2, 16, 4)
    lean = rng.uniform(-MAX_SLANT / 4, MAX_SLANT)
    height = bottom - top + int(margin[:2].sum())
    width = right - left + int(margin[2:].sum() + abs(lean) * height)
    ink = Image.new("L", (max(width, 1), max(height, 1)))
    start = margin[2] + max(-lean, 0) * height - left
    ImageDraw.Draw(ink).text((start, margin[0] - top), text, fill=255, font=font)
    ink = ink.transform(ink.size, Image.Transform.AFFINE, (1, lean, -max(lean, 0) * height, 0, 1, 0))
    ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    ink = ink.resize((max(1, round(ink.width * HEIGHT / ink.height)), HEIGHT))
    share = np.asarray(ink, dtype=np.float32) / 255 * rng.uniform(0.4, 1)
    paper = rng.uniform(170, 250) + rng.normal(0, rng.uniform(1, 6), share.shape)
    return (paper * (1 - share) + rng.uniform(0, 90) * share).clip(0, 255).astype(np.uint8)


def drawable(text, font):
    """The text without the characters that the font has no picture of, its words apart by one space."""
    missing = bytes(font.getmask("\uffff"))
    characters = [c for c in text if c.isspace() or bytes(font.getmask(c)) != missing]
    return " ".join("".join(characters).split())  # a tab would end the text's column of labels.tsv


def main(texts, folder, fonts, count=2000, seed=0):
    """Write `count` images of the texts and labels.tsv into a folder; returns the texts in their order.

    Raises:
        ValueError: the fonts have none of the characters.
    """
    if not any(drawable(text, font) for text in texts for font in fonts):
        raise ValueError("the fonts have none of the characters of the texts; give another font")
    rng, written = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.tsv").open("w", encoding="utf-8") as labels:
        while len(written) < count:
            font = fonts[rng.integers(len(fonts))]
            text = drawable(texts[rng.integers(len(texts))], font)
            if text:
                name = f"{len(written):06}.png"
                Image.fromarray(render(text, font, rng)).save(folder / name)
                labels.write(f"{name}\t{text}\n")
                written.append(text)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render lines of text to train on.")
    parser.add_argument("texts", type=Path, help="file with one text in each line, UTF-8")
    parser.add_argument("folder", type=Path, help="folder to write into")
    parser.add_argument("--font", type=Path, action="append", required=True, help="font file; repeatable")
    parser.add_argument("--count", type=int, default=2000, help="number of images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = [line for line in options.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        parser.error(f"{options.texts} holds no text")
    fonts = [ImageFont.truetype(str(path), HEIGHT) for path in options.font]
    main(texts, options.folder, fonts, options.count, options.seed)
    print(f"{options.folder}: {options.count} lines in {len(fonts)} fonts")
