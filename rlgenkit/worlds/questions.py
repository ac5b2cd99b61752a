"""Requests that the small vision-language model of sticker scenes knows, and the form of its answers.

Its lessons, with all requests, stand beside its recipe in data/models/vision_language.
"""

LEVELS = ("low", "medium", "high")
EDGES = (0.35, 0.65)  # where low ends and high begins
DESCRIBE, SCORE, RATE = "describe the picture", "score the picture", "rate the picture"


def level(value: float) -> str:
    """ "low" | "medium" | "high" of a look control in [0, 1]."""
    return LEVELS[(value >= EDGES[0]) + (value >= EDGES[1])]


def answer(thought: str, score: float) -> str:
    """A scored answer: the reasoning, then the score with two decimals."""
    return f"<think> {thought} </think> <answer> score: {score:.2f} </answer>"
