"""Train the image-text dual encoder of sticker scenes (CLIP class): a reward model, not the truth."""

import json

import torch
from torch import Tensor

from rlgenkit.worlds.prompts import sample_prompts
from rlgenkit.worlds.scenes import SIZE, render, sample_scenes
from ..recipes import MODELS, at_step, fit
from ..flow.train import TOKENS, build_tokenizer, token_ids
from ..reader.train import degrade

BATCH, STEPS, WIDTH = 96, 800, 96


def build(vocabulary: int):
    """The untrained dual encoder: patches of 8 px, three vision and two text layers of width 96."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    shared = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": 64,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig(
                **shared,
                vocab_size=vocabulary,
                num_hidden_layers=2,
                pad_token_id=0,
                max_position_embeddings=TOKENS,
                eos_token_id=1,
                bos_token_id=1,
            ).to_dict(),
            vision_config=CLIPVisionConfig(
                **shared, num_hidden_layers=3, image_size=SIZE, patch_size=8
            ).to_dict(),
            projection_dim=64,
        )
    )


def loss(model, images: Tensor, ids: Tensor) -> Tensor:
    """Symmetric contrastive loss of pictures [B, 3, 64, 64] in [0, 1] and their captions [B, 16]."""
    return model(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        pixel_values=images * 2 - 1,
        return_loss=True,
    ).loss


def main(steps: int = STEPS) -> None:
    """Train and save data/models/clip: CLIPModel, tokenizer; pixel values are 2 x - 1."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = build(len(tokenizer))

    def loss_at(step: int) -> Tensor:
        generator = at_step(62, step)
        prompts = sample_prompts(BATCH, generator=generator)
        images = degrade(render(sample_scenes(prompts, generator)), generator)
        return loss(model, images, token_ids(tokenizer, prompts))

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.5e-3, weight_decay=0.01, betas=(0.9, 0.98)
    )
    fit("clip", model, [optimizer], steps, loss_at, ema=0.99)
    model.half().save_pretrained(MODELS / "clip")
    tokenizer.save_pretrained(MODELS / "clip")
    (MODELS / "clip" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "CLIPImageProcessor",
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "size": {"shortest_edge": SIZE},
                "crop_size": {"height": SIZE, "width": SIZE},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
