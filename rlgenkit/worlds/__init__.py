"""Where data, ground truth and simulated annotators come from. Imports nothing of the package."""

from . import arithmetic, questions
from .agiqa import TwoRatings, load_agiqa
from .ava import PhotoVotes, load_ava, vote_duels, vote_moments
from .annotators import crowd, cyclic_probability, prefer, preference_probability, rate, taste, utilities
from .gsm8k import SOLVERS, Solutions, load_gsm8k
from .human import CaptionVotes, HumanRatings, load_captions, load_geneval, load_vader
from .opinpref import ASPECTS, OpinPref, load_opinpref, load_preference_pairs
from .prompts import (BACKGROUNDS, CATEGORIES, COLORS, DIGITS, GLYPHS, KINDS, RELATIONS, WORDS, Group,
                      Prompt, caption, parse, sample_prompts, split_of)
from .reader import REWARD_READER, Reading, check, edit_distance, load_reader, read, words
from .scenes import (LOOKS, SHAPES, SIZE, Scene, Sticker, balance_of, render, sample_scene,
                     sample_scenes, with_look)

__all__ = ["arithmetic", "PhotoVotes", "load_ava", "vote_duels", "vote_moments", "questions", "TwoRatings", "load_agiqa", "SOLVERS", "Solutions", "load_gsm8k", "ASPECTS", "OpinPref", "load_opinpref", "load_preference_pairs", "crowd", "cyclic_probability", "prefer", "preference_probability", "rate", "taste",
           "utilities", "BACKGROUNDS", "CATEGORIES", "COLORS", "DIGITS", "GLYPHS", "KINDS", "RELATIONS", "WORDS",
           "Group", "Prompt", "caption", "parse", "sample_prompts", "split_of", "REWARD_READER", "Reading", "check",
           "CaptionVotes", "HumanRatings", "load_captions", "load_geneval", "load_vader", "edit_distance", "load_reader", "read", "words", "LOOKS", "SHAPES", "SIZE", "Scene",
           "Sticker", "balance_of", "render", "sample_scene", "sample_scenes", "with_look"]
