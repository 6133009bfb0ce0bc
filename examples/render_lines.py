"""Lines of text in fonts that look like handwriting, for a start before training on real ones.

    python examples/render_lines.py pages/ rendered/ --font fonts/ --count 12000

The texts are those of a file, one in each line, or the ones that a folder is trained on. Half of the lines
join the beginning of one text to the end of another. Each image holds a line in one of the fonts, slanted
and on uneven paper; labels.tsv holds the texts. Characters that a font lacks are left out of its lines, and
fonts that lack many, such as those for another script, are left out themselves.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT = 64  # pixels
MAX_SLANT = 0.4  # columns by which a row moves against the one below
MAX_LACKING = 0.02  # of the characters of the texts, in a font that is used
SUFFIXES = (".ttf", ".otf", ".woff2", ".woff")  # of font files


def render(text, font, rng):
    """An image (H, W) uint8 of a line, 64 pixels high."""
    left, top, right, bottom = font.getbbox(text)
    margin = rng.integers(2, 16, 4)
    lean = rng.uniform(-MAX_SLANT / 4, MAX_SLANT)
    height = bottom - top + int(margin[:2].sum())
    width = right - left + int(margin[2:].sum() + abs(lean) * height)
    ink = Image.new("L", (max(width, 1), max(height, 1)))
    ImageDraw.Draw(ink).text((margin[2] - left, margin[0] - top), text, fill=255, font=font)
    ink = ink.transform(ink.size, Image.Transform.AFFINE, (1, lean, -max(lean, 0) * height, 0, 1, 0))
    ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    ink = ink.resize((max(1, round(ink.width * HEIGHT / ink.height)), HEIGHT))
    share = np.asarray(ink, dtype=np.float32) / 255 * rng.uniform(0.4, 1)
    paper = rng.uniform(170, 250) + rng.normal(0, rng.uniform(1, 6), share.shape)
    return (paper * (1 - share) + rng.uniform(0, 90) * share).clip(0, 255).astype(np.uint8)


def has(font, character):
    """True if the font has a picture of the character."""
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


def find_fonts(paths, texts):
    """The fonts of files, and of folders at any depth, that have nearly all characters of the texts."""
    files = [p for path in paths for p in ([path] if path.is_file() else sorted(path.rglob("*")))]
    by_name = {p.stem: p for p in files if p.suffix.lower() in SUFFIXES}  # one form of each font
    counts, fonts = Counter("".join(texts)), []
    for path in by_name.values():
        font = ImageFont.truetype(str(path), HEIGHT)
        lacking = sum(count for character, count in counts.items() if not has(font, character))
        if lacking <= MAX_LACKING * counts.total():
            fonts.append(font)
    return fonts


def find_texts(path):
    """The lines of a file, or the texts of the training samples in a folder of data."""
    if path.is_dir():
        from mdlstm_tk.text.transcribe_training import target_texts
        from mdlstm_tk.training import configure, make_task

        task = make_task(configure(task="transcribe", data=path))
        return target_texts((y for _, y in task.sets["train"]), task.spec)
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def compose(texts, rng):
    """One of the texts, or the first words of one and the last words of another."""
    first, second = (texts[k].split() for k in rng.integers(len(texts), size=2))
    if rng.uniform() < 0.5:
        first = [*first[: rng.integers(len(first) + 1)], *second[rng.integers(len(second)) :]]
    return " ".join(first)


def main(texts, folder, fonts, count=2000, seed=0):
    """Write `count` images of the texts and labels.tsv into a folder; returns the texts in their order.

    Raises:
        ValueError: the fonts have none of the characters.
    """
    if not any(has(font, c) for font in fonts for c in set("".join(texts)) if not c.isspace()):
        raise ValueError("the fonts have none of the characters of the texts; give another font")
    rng, written = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.tsv").open("w", encoding="utf-8") as labels:
        while len(written) < count:
            font = fonts[rng.integers(len(fonts))]
            text = "".join(c for c in compose(texts, rng) if has(font, c))
            text = " ".join(text.split())  # a tab would end the text's column of labels.tsv
            if text:
                name = f"{len(written):06}.jpg"
                Image.fromarray(render(text, font, rng)).save(folder / name, quality=90)
                labels.write(f"{name}\t{text}\n")
                written.append(text)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render lines of text to train on.")
    parser.add_argument("texts", type=Path, help="file of texts, UTF-8, or folder of training data")
    parser.add_argument("folder", type=Path, help="folder to write into")
    parser.add_argument("--font", type=Path, action="append", required=True, help="font file, or folder")
    parser.add_argument("--count", type=int, default=2000, help="number of images")
    options = parser.parse_args()
    texts = find_texts(options.texts)
    fonts = find_fonts(options.font, texts)
    main(texts, options.folder, fonts, options.count)
    print(f"{options.folder}: {options.count} lines in {len(fonts)} fonts")
