"""Generative policies: load, embed, denoise, decode, adapt. Names are resolved on first use,
so that importing the package imports neither diffusers nor transformers."""

from rlgenkit._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "lora": "add_lora load_adapter lora_parameters reference save_adapter",
        "conditioning": "Conditioning concat embed unconditional",
        "denoisers": "denoiser",
        "gaussian": "GaussianPolicy gaussian_policy",
        "images": "ImagePolicy image_policy",
        "language": "LanguagePolicy language_policy vision_language_policy",
        "latents": "decode encode",
        "policy": "Policy load_policy make_policy",
        "text": "text_states",
        "tokens": "TokenBatch generate load_language_model pad_left token_logprobs",
        "vision_language": (
            "Views answer_distributions answer_logprobs answer_texts answer_views ask "
            "freeze_views given_answers load_vision_language make_views yes_probability"
        ),
    },
)
