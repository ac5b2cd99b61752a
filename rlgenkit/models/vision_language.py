"""Vision-language models: a picture and a request in, an answer with the log-prob of every token out.

Any model of AutoModelForImageTextToText with a chat template fits (LLaVA, Qwen-VL, SmolVLM ...); the
small one in data/models/vision_language knows the requests of `rlgenkit.worlds.questions`. Several
answers to one request share the pass over the picture and the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .folders import check_model, read_network, read_part, resolve_folder
from .tokens import TokenBatch, _scaled, chosen, pad_right, speak

SMALL = "data/models/vision_language"


@dataclass(frozen=True)
class Views:
    """B pictures with one request each, as a model reads them.

    ids Long[B, P]: the requests, padded on the left; real Bool[B, P]: what is not padding; inputs:
    what else the model's forward takes, one row a picture (pixel_values), or, after `freeze_views`,
    keys and values [B, layers, heads, P', d] of the first P' tokens.
    """

    ids: Tensor
    real: Tensor
    inputs: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor) -> Views:
        return self.index(rows)

    def index(self, rows: Tensor) -> Views:
        """The views of the given rows Long[b]."""
        if any(len(v) != len(self.ids) for v in self.inputs.values()):
            raise ValueError(
                "this model packs the pictures of a batch together: make views anew for a part of it"
            )
        return Views(self.ids[rows], self.real[rows], {k: v[rows] for k, v in self.inputs.items()})


def load_vision_language(
    path_or_hub_id: str | Path = SMALL, device: str = "cpu"
) -> tuple[nn.Module, Any]:
    """(model in float32, in eval mode; processor) from a folder of the checkout or a hub id.

    Only safetensors are read. ValueError or FileNotFoundError with the path and what to do.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, what = resolve_folder(path_or_hub_id, pipeline=False), "a vision-language model"
    check_model(folder)
    processor = read_part(AutoProcessor, folder, what)
    return read_network(AutoModelForImageTextToText, folder, what=what).to(device), processor


def make_views(
    model: nn.Module, processor: Any, images: Tensor, requests: str | Sequence[str]
) -> Views:
    """Views of images [B, 3, H, W] in [0, 1] with a request each, or with one for all.

    The processor scales the pictures and puts the request into the model's chat template.
    """
    requests = [requests] * len(images) if isinstance(requests, str) else list(requests)
    if images.ndim != 4 or images.shape[1] != 3 or len(requests) != len(images) or not requests:
        raise ValueError(
            f"{len(requests)} requests need as many images [B, 3, H, W], got {list(images.shape)}"
        )
    said = {
        r: processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": r}]}],
            add_generation_prompt=True,
        )
        for r in dict.fromkeys(requests)
    }
    pixels = (images.detach().clamp(0, 1) * 255).round().byte().movedim(1, 3).cpu().numpy()
    found = processor(
        images=list(pixels),
        text=[said[r] for r in requests],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    extra = {k: v for k, v in found.items() if k not in ("input_ids", "attention_mask")}
    return Views(found["input_ids"], found["attention_mask"].bool(), extra)


@torch.no_grad()
def freeze_views(model: nn.Module, views: Views, words: int = 0, chunk: int = 64) -> Views:
    """The same views with what the decoder keeps of the pictures computed once (LLaVA class).

    The keys and values of all tokens but the last `words` are stored, so that later passes read only
    those (0: one, which is the least) and no gradient reaches the pictures. It is exact as long as
    the model is not trained; a policy trained on frozen views learns to speak, not to see, and is
    used with views frozen under the same model. No view may be padded.
    """
    kept = views.ids.shape[1] - max(1, words)
    if not views.real.all() or kept < 1:
        raise ValueError(
            "freeze_views needs requests of equal length and leaves at least one token"
        )
    parts: list[list[Tensor]] = []
    for rows in torch.arange(len(views), device=views.ids.device).split(chunk):
        part = views.index(rows)
        ids, real = part.ids[:, :kept], part.real[:, :kept]
        layers = _on(model, ids, real, logits_to_keep=1, **part.inputs).past_key_values.layers
        pair = [x.keys for x in layers], [x.values for x in layers]
        parts.append([torch.stack(side, 1) for side in pair])
    return replace(views, inputs=dict(zip(("keys", "values"), map(torch.cat, zip(*parts)))))


def _on(model: nn.Module, ids: Tensor, real: Tensor, past: Any = None, **inputs: Any) -> Any:
    """What the model says behind ids Long[B, L]; it finds the places of tokens by itself."""
    return model(
        input_ids=ids,
        attention_mask=real.long(),
        past_key_values=past,
        use_cache=True,
        **inputs,
    )


def _read(model: nn.Module, views: Views, group: int) -> Any:
    """logits [B * group, 1, V] behind the requests, and past_key_values of B * group rows."""
    ids, inputs, past = views.ids, views.inputs, None
    if "keys" in inputs:
        from transformers import DynamicCache

        past = DynamicCache()
        for layer, pair in enumerate(zip(inputs["keys"].unbind(1), inputs["values"].unbind(1))):
            past.update(*pair, layer)
        ids, inputs = ids[:, past.get_seq_length() :], {}
    out = _on(model, ids, views.real, past, logits_to_keep=1, **inputs)
    if group > 1:
        out.past_key_values.batch_repeat_interleave(group)
        out.logits = out.logits.repeat_interleave(group, 0)
    return out


@torch.no_grad()
def answer_views(
    model: nn.Module,
    views: Views,
    new: int,
    generator: torch.Generator,
    temperature: float,
    end: int,
    pad: int,
    group: int = 1,
    score: bool = True,
) -> TokenBatch:
    """`group` answers to each view, of at most `new` tokens, rows [B * group] in the views' order.

    temperature 0 takes the likeliest token. The log-probs are those of `answer_logprobs`, so that a
    replay of the same rows returns the same bits and ratios start at exactly 1; without `score` they
    are left at 0. The generator's device may differ from the model's.
    """
    if group < 1:
        raise ValueError("answers need group >= 1")
    ids, real = (t.repeat_interleave(group, 0) for t in (views.ids, views.real))
    start = TokenBatch(ids, real, torch.empty(len(ids), 0), temperature)
    out = _read(model, views, group)
    batch = speak(partial(_on, model), out, start, new, end, pad, generator)
    return replace(batch, log_probs=answer_logprobs(model, views, batch)) if score else batch


def answer_distributions(model: nn.Module, views: Views, batch: TokenBatch) -> Tensor:
    """Log-probs float32 [B * group, T, V] of every token at each place of the answers (differentiable).

    One pass over pictures and requests, then one over the answers given, at the batch's temperature.
    """
    if len(batch.ids) % len(views) or not torch.equal(
        batch.ids[:, : batch.width], views.ids.repeat_interleave(len(batch.ids) // len(views), 0)
    ):
        raise ValueError("the batch does not hold answers to these views, in their order")
    first = _read(model, views, len(batch.ids) // len(views))
    logits, past = first.logits, first.past_key_values
    if batch.answers.shape[1] > 1:
        then = _on(model, batch.answers[:, :-1], batch.real[:, :-1], past)
        logits = torch.cat([logits, then.logits], 1)
    return _scaled(logits, batch.temperature)


def answer_logprobs(model: nn.Module, views: Views, batch: TokenBatch) -> Tensor:
    """Log-probs float32 [B * group, T] of the batch's answers, 0 on padding (differentiable)."""
    return chosen(answer_distributions(model, views, batch), batch)


def given_answers(processor: Any, views: Views, texts: Sequence[str]) -> TokenBatch:
    """A batch that holds the given answers, as for supervised learning or for scoring; B or B * group texts."""
    tokenizer = processor.tokenizer
    rows = [
        tokenizer(t, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] for t in texts
    ]
    if not rows or len(rows) % len(views):
        raise ValueError(f"{len(rows)} answers do not fit {len(views)} views")
    group = len(rows) // len(views)
    answers, mask = pad_right(rows, tokenizer.pad_token_id)
    ids = torch.cat([views.ids.repeat_interleave(group, 0), answers.to(views.ids)], 1)
    real = torch.cat([views.real.repeat_interleave(group, 0), mask.to(views.real)], 1)
    return TokenBatch(ids, real, torch.zeros(answers.shape, device=views.ids.device), 1.0)


def answer_texts(processor: Any, batch: TokenBatch) -> list[str]:
    """The answers as texts, by a processor or tokenizer, end and padding tokens left out."""
    rows = [a[m] for a, m in zip(batch.answers, batch.mask)]
    return [text.strip() for text in processor.batch_decode(rows, skip_special_tokens=True)]


def ask(
    model: nn.Module,
    processor: Any,
    images: Tensor,
    requests: str | Sequence[str],
    new: int = 32,
    chunk: int = 256,
) -> list[str]:
    """The likeliest answer to a request about each picture: a description, "yes", a scored reasoning."""
    tokenizer, texts = processor.tokenizer, []
    for rows in torch.arange(len(images)).split(chunk):
        part = requests if isinstance(requests, str) else [requests[i] for i in rows]
        views = make_views(model, processor, images[rows], part)
        ends = tokenizer.eos_token_id, tokenizer.pad_token_id
        batch = answer_views(model, views, new, torch.Generator(), 0.0, *ends, score=False)
        texts += answer_texts(processor, batch)
    return texts


def yes_probability(model: nn.Module, processor: Any, views: Views) -> Tensor:
    """P(yes) / (P(yes) + P(no)) [B] of the next token, in any spelling the tokenizer has (differentiable)."""
    table = processor.tokenizer.get_vocab()
    sides = [
        [i for t, i in table.items() if t.strip("Ġ▁ ").lower() == word] for word in ("yes", "no")
    ]
    if not all(sides):
        raise ValueError("the tokenizer has no token for yes or for no")
    log_probs = _scaled(_read(model, views, 1).logits[:, -1], 1.0)
    yes, no = (log_probs[:, side].logsumexp(1) for side in sides)
    return torch.sigmoid(yes - no)
