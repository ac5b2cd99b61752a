"""Where data, ground truth and simulated annotators come from. Imports nothing of the package."""

from rlgenkit._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "annotators": "cyclic_probability prefer preference_probability rate taste",
        "arithmetic": "",
        "dsg": "CheckedImages dsg_scores load_dsg",
        "gsm8k": "SOLVERS Solutions load_gsm8k",
        "human": (
            "CaptionVotes HumanRatings PhotoVotes TwoRatings load_agiqa load_ava load_captions "
            "load_geneval load_vader"
        ),
        "llmbar": "JudgedPairs load_llmbar",
        "opinpref": "ASPECTS OpinPref load_opinpref load_preference_pairs",
        "pandalm": "LabeledPairs load_pandalm",
        "pccd": "Critiques load_pccd",
        "prompts": (
            "BACKGROUNDS CATEGORIES COLORS DIGITS GLYPHS Group KINDS Prompt RELATIONS WORDS "
            "caption parse sample_prompts split_of"
        ),
        "questions": "",
        "reader": "REWARD_READER Reading check edit_distance load_reader read words",
        "scenes": (
            "LOOKS SHAPES SIZE Scene Sticker balance_of render sample_scene sample_scenes with_look"
        ),
        "unigenbench": "PromptCriteria load_unigenbench",
    },
)
