"""A contact sheet: cards of labelled pictures, laid out in rows like words on a page, each group under its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PICTURE = 96  # pixels, the side a picture is shown at
GAP = 8
WIDTH = 1400
LINE = 16
HEAD = 3 * LINE + GAP  # title and two lines of prompt
TITLE = 22  # of a group, in pixels
INK, GREY, LINE_COLOUR, WRONG = "#222222", "#777777", "#dddddd", "#c22222"


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture and what it is: given, made, truth."""

    label: str
    image: Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One task on one scene. wrong: what is wrong with the result, "" for nothing that was looked for."""

    task: str
    prompt: str
    seconds: float
    pictures: tuple[Shown, ...]
    wrong: str = ""

    @property
    def width(self) -> int:
        return max(3, len(self.pictures)) * (PICTURE + GAP) + GAP


HEIGHT = HEAD + PICTURE + LINE + 2 * GAP


def contact_sheet(groups: Mapping[str, Sequence[Card]]) -> Image.Image:
    """Return all cards on one picture of WIDTH pixels, each group under its name."""
    titles: list[tuple[int, str]] = []
    placed: list[tuple[tuple[int, int], Card]] = []
    bottom = 0
    for name, cards in groups.items():
        titles.append((bottom + GAP, name))
        x, y = GAP, bottom + 2 * GAP + TITLE
        for card in cards:
            if x + card.width + GAP > WIDTH:
                x, y = GAP, y + HEIGHT + GAP
            placed.append(((x, y), card))
            x += card.width + GAP
        bottom = y + HEIGHT
    sheet = Image.new("RGB", (WIDTH, bottom + GAP), "#fafafa")
    draw, large = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for top, name in titles:
        draw.text((GAP, top), name, fill=INK, font=large)
    for place, card in placed:
        sheet.paste(draw_card(card), place)
    return sheet


def draw_card(card: Card) -> Image.Image:
    """Return one card, (HEIGHT, card.width) pixels."""
    image = Image.new("RGB", (card.width, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, card.width - 1, HEIGHT - 1), outline=WRONG if card.wrong else LINE_COLOUR)
    bold, small = ImageFont.load_default(13), ImageFont.load_default(11)
    draw.text((GAP, GAP // 2), card.task, fill=INK, font=bold)
    note, colour = (card.wrong, WRONG) if card.wrong else (f"{card.seconds:.1f} s", GREY)
    draw.text((card.width - GAP - draw.textlength(note, font=small), GAP // 2 + 1), note, fill=colour, font=small)
    for number, line in enumerate(_wrapped(draw, card.prompt, small, card.width - 2 * GAP)[:2]):
        draw.text((GAP, LINE * (number + 1) + GAP // 2), line, fill=GREY, font=small)
    for number, shown in enumerate(card.pictures):
        left = GAP + number * (PICTURE + GAP)
        image.paste(_square(shown.image), (left, HEAD))
        draw.text((left, HEAD + PICTURE + 2), shown.label, fill=GREY, font=small)
    return image


def _square(image: Image.Image) -> Image.Image:
    scale = PICTURE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smooth = Image.Resampling.NEAREST if scale > 1 and PICTURE % image.width == 0 else Image.Resampling.BICUBIC
    return image.convert("RGB").resize(size, smooth)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
