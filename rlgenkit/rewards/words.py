"""Short-word OCR: how close is the word in the picture to the word that was asked for?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlgenkit.worlds.prompts import Prompt
from rlgenkit.worlds.reader import Reading, edit_distance, words

from .batch import Batch, Reward, Scores, parsed, where_defined

# OCR engines expect letters of 20-40 px; stickers are about half of that.
OCR_SIDE = 256


def word_similarity(found: str, asked: str) -> float:
    """max(0, 1 - distance / len(asked)) in [0,1], spaces removed and lower-cased.

    Source: the OCR reward of Flow-GRPO. Raises ValueError if nothing is asked for.
    """
    found, asked = (text.replace(" ", "").lower() for text in (found, asked))
    if not asked:
        raise ValueError("an OCR score needs a word to look for; the asked word is empty.")
    return max(0.0, 1 - edit_distance(found, asked) / len(asked))


def word_score(reading: Reading, prompts: Sequence[Prompt | str]) -> Scores:
    """`word_similarity` [B] of the reader's glyphs and the asked word; invalid if none is asked."""
    return _score(words(reading), parsed(prompts), reading.look)


def ocr_reward(recognize: Callable[[Tensor], list[str]]) -> Reward:
    """Reward from any recognizer images [B,3,H,W] -> B strings; invalid where no word is asked."""

    def reward(batch: Batch) -> Scores:
        prompts = parsed(batch.prompts)
        return _score(recognize(batch.images), prompts, batch.images)

    return reward


def rapid_ocr() -> Callable[[Tensor], list[str]]:
    """Recognizer for `ocr_reward` on PP-OCR models (optional wheel rapidocr-onnxruntime).

    Images are enlarged to 256 px; lines are joined from left to right. Raises ValueError if the
    wheel is missing.
    """
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError:
        raise ValueError(
            "the PP-OCR recognizer needs the wheel rapidocr-onnxruntime: install it with pip, or "
            "use from_reader(reader, word_score)."
        ) from None
    engine = RapidOCR()

    def recognize(images: Tensor) -> list[str]:
        large = torch.nn.functional.interpolate(
            images.detach().float().cpu(), size=(OCR_SIDE, OCR_SIDE), mode="bicubic"
        )
        pixels = (large.clamp(0, 1) * 255).round().byte().flip(1).movedim(1, 3).numpy()
        lines = [engine(picture)[0] or [] for picture in pixels]
        return ["".join(line[1] for line in sorted(found, key=_left)) for found in lines]

    return recognize


def _left(line: tuple) -> float:
    return min(corner[0] for corner in line[0])


def _score(found: Sequence[str], prompts: Sequence[Prompt], like: Tensor) -> Scores:
    values = [
        word_similarity(word, prompt.word) if prompt.word else float("nan")
        for word, prompt in zip(found, prompts, strict=True)
    ]
    return where_defined(like.new_tensor(values))
