"""Sizes that packs are padded to: a captured step serves every pack of its bucket."""

SMALL = 64  # up to 256 tokens buckets are multiples of this; such packs cost next to nothing


def token_bucket(tokens: int) -> int:
    """Return the smallest bucket that holds so many tokens: at most 1/17 (5.9 %) more, above 256.

    Buckets are m * 2^k with m from 17 to 34, so that all powers of two are among them.
    """
    if tokens <= 256:
        return max(1, -(-tokens // SMALL)) * SMALL
    step = 1
    while 34 * step < tokens:
        step *= 2
    return -(-tokens // step) * step


def text_bucket(words: int) -> int:
    """Return the smallest bucket that holds so many text tokens: multiples of 64, above 512 at most a quarter more.

    They are few beside a picture's, and prompts differ in length, so that finer buckets would be more to capture.
    """
    step = SMALL
    while 8 * step < words:
        step *= 2
    return max(1, -(-words // step)) * step


def capacity(count: int, least: int) -> int:
    """Return the smallest of ``least``, 4 * least, 16 * least, ... that holds ``count``."""
    while least < count:
        least *= 4
    return least
