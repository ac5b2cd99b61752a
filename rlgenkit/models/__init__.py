"""Generative policies: load, embed, denoise, decode, adapt. Names are resolved on first use,
so that importing the package imports neither diffusers nor transformers."""

from importlib import import_module

_HOME = {
    "Conditioning": "policy",
    "Policy": "policy",
    "concat": "policy",
    "decode": "policy",
    "denoiser": "policy",
    "embed": "policy",
    "encode": "policy",
    "load_policy": "policy",
    "make_policy": "policy",
    "save_policy": "policy",
    "set_latent_statistics": "policy",
    "unconditional": "policy",
    "text_states": "text",
    "TokenBatch": "tokens",
    "generate": "tokens",
    "load_language_model": "tokens",
    "pad_left": "tokens",
    "token_entropies": "tokens",
    "token_logprobs": "tokens",
    "Views": "vision_language",
    "answer_distributions": "vision_language",
    "answer_logprobs": "vision_language",
    "answer_texts": "vision_language",
    "answer_views": "vision_language",
    "ask": "vision_language",
    "freeze_views": "vision_language",
    "given_answers": "vision_language",
    "load_vision_language": "vision_language",
    "make_views": "vision_language",
    "yes_probability": "vision_language",
    "add_lora": "lora",
    "load_adapter": "lora",
    "lora_parameters": "lora",
    "reference": "lora",
    "save_adapter": "lora",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Import the module that holds `name`; AttributeError for any other name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
