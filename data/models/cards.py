"""Write the model cards (README.md) of data/models from the measured quality beside each model."""

import json
from pathlib import Path

from safetensors import safe_open

from .recipes import MODELS

ABOUT = {
    "autoencoder": (
        "AutoencoderDC",
        "64x64 RGB pictures to 8x8 latents of 8 channels and back; Gaussian noise on "
        "the latents in training makes them smooth. `latents_mean` and `latents_std` in its config "
        "standardize each channel.",
        "Small speckles are smoothed away; thin strokes blur.",
    ),
    "flow": (
        "StableDiffusion3Pipeline",
        "Rectified-flow text-to-image model (SD3Transformer2DModel, 6 blocks of "
        "width 128) with its own three-layer T5 encoder, which first learns to read captions alone "
        '(`Reading` in `data/models/flow/train.py`): without that the side of "left of" is not learned. '
        "The first of the two runs that made this copy had no such stage.",
        "Knows only the caption grammar of sticker scenes. What it fails at is in the table; without guidance "
        "all of it is a little worse. Counts together with a relation were never trained.",
    ),
    "epsilon": (
        "PixArtAlphaPipeline",
        "Noise-prediction text-to-image model (PixArtTransformer2DModel, 6 blocks of "
        "width 128) for DDIM sampling; its text encoder is trained like the flow model's.",
        "The same limits as the flow model (see the table).",
    ),
    "consistency": (
        "PixArtAlphaPipeline with LCMScheduler",
        "The epsilon model distilled to a few steps "
        "(latent consistency distillation at a fixed guidance scale, built in).",
        "Sample with guidance 1. Fewer details than its teacher.",
    ),
    "few_step": (
        "two LoRA adapters of the flow model's SD3Transformer2DModel",
        "The flow model distilled to four Euler steps by trajectory distribution matching (TDM, K = 4, guidance 3 "
        "built in): `student` draws, `fake` is the fake score, which knows the velocity of what the student draws. "
        "Load `flow`, then `rlgenkit.models.load_adapter(policy.network, folder)`.",
        'Sample with 4 steps of `samplers.flow_table(4, "ode")` at guidance 1.',
    ),
    "clip": (
        "CLIPModel",
        "Image-text dual encoder of sticker scenes, a reward model.",
        "Binding and counting are its weak spots, which makes it hackable; it is never the judge.",
    ),
    "reader": (
        "rlgenkit.worlds.Reader",
        "The truth meter: reads stickers, colors, places, background and look.",
        "Trained for sticker scenes only; on other pictures its readings mean nothing.",
    ),
    "reward_reader": (
        "rlgenkit.worlds.Reader",
        "A smaller reader for rewards, trained on clean renderings only, so "
        "that the truth meter never judges what it rewarded.",
        "Less accurate on blurred, noised or decoded pictures: that is its planted weakness.",
    ),
    "arithmetic": (
        "LlamaForCausalLM",
        "A small language model of arithmetic chains modulo 10 that solves (with slips), "
        "criticizes (as a weak teacher) and refines (as it is told): an actor and a critic in one. "
        "Prompts are made by `rlgenkit.worlds.arithmetic`.",
        "Knows chains of four steps on one digit. Its critic can tell a slip (an exact teacher came first) but "
        "learned last from a weak teacher to overlook slips and to distrust nines. This copy was trained in pieces "
        "while the recipe was found: 525 steps with a weak teacher, 275 with the exact one, then "
        "300 and 200 with weak ones, the last as it is now; the command trains 800 steps with the exact "
        "teacher and 500 with the weak one in one run.",
    ),
    "vision_language": (
        "LlavaForConditionalGeneration",
        "A small vision-language model of sticker scenes: it "
        "describes a picture, answers questions with yes or no, scores each control of the look and "
        "the whole with a short reasoning, and gives a loose first impression. Requests are listed "
        "in `rlgenkit.worlds.questions`; `rlgenkit.models.ask` puts them.",
        "Knows these requests only, each about one picture of 64 px, in no other wording. Small errors of hue "
        "(harmony) escape it and speckles (clutter) are counted roughly: see the table.",
    ),
}


def _rows(table: dict[str, dict]) -> str:
    """A markdown table of {row: {column: value}}; missing values are left empty."""
    columns = list(dict.fromkeys(k for row in table.values() for k in row))
    lines = [f"| | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1)]
    return "\n".join(
        lines
        + [
            f"| {name} | " + " | ".join(str(row.get(c, "")) for c in columns) + " |"
            for name, row in table.items()
        ]
    )


def _parameters(folder: Path) -> int:
    """Numbers stored in a model folder's safetensors files."""
    total = 0
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                size = 1
                for n in tensors.get_slice(name).get_shape():
                    size *= n
                total += size
    return total


def _runs(folder: Path) -> str:
    """The runs that made this copy, from training.json; empty without one."""
    path = folder / "training.json"
    if not path.exists():
        return ""
    runs = json.loads(path.read_text())
    told = [
        f"`python -m rlgenkit models {folder.name} --steps {r['steps']} --batch {r['batch']} --scenes {r['scenes']}"
        f"{' --further' * r['further']}{' --device cuda' * (r['device'] == 'cuda')}` "
        f"({r['seconds']} s on {r['hardware']})"
        for r in runs
    ]
    return "This copy: " + ", then ".join(told) + "."


def card(name: str) -> str:
    """The card's text, from ABOUT, the files of the folder and quality.json or accuracy.json."""
    kind, what, limits = ABOUT[name]
    folder = MODELS / name
    files = [folder / n for n in ("quality.json", "accuracy.json") if (folder / n).exists()]
    record = json.loads(files[0].read_text()) if files else {}
    seconds = record.get("seconds")
    size = (
        sum(
            f.stat().st_size
            for f in folder.rglob("*")
            if f.is_file() and f.suffix not in (".py", ".pyc")
        )
        / 1e6
    )
    library = (
        "rlgenkit"
        if "Reader" in kind
        else "transformers"
        if name in ("arithmetic", "vision_language")
        else "diffusers"
    )
    source = {"arithmetic": "chains of sums", "few_step": "captions"}.get(
        name, "rendered sticker scenes"
    )
    parts = [
        f"---\nlicense: mit\nlibrary_name: {library}\n---",
        f"# {name}",
        what,
        f"Class `{kind}`; {_parameters(folder) / 1e6:.2f} M stored numbers, {size:.1f} MB on disk "
        f"({'single precision' if name == 'few_step' else 'half precision; load as float32'}).",
        f"**Training.** `python -m rlgenkit models {name}`, seeds fixed in "
        f"`data/models`, on {source} made on the fly. "
        + (
            _runs(folder)
            or (f"This copy took {seconds:.0f} s on 2 shared CPU cores." if seconds else "")
        ),
        f"**Limits.** {limits}",
    ]
    table = record.get("quality") or record.get("accuracy")
    if table and record.get("sampling"):
        parts.append(
            f"**Quality**, by the truth meter, {record['sampling']['steps']} steps at guidance "
            f'{record["sampling"]["guidance"]}; "test" captions were kept from training, "heldout" ones '
            "hold a kind-color pair that training never showed."
        )
    elif table and name == "arithmetic":
        parts.append(
            "**Quality** on 2,000 unseen chains: shares. First attempts are drawn at temperature 1, critiques "
            "and refinements are greedy."
        )
    elif table and name == "vision_language":
        parts.append(
            "**Quality** on new scenes: mean and standard deviation over three draws of 400, likeliest answers. "
            '"test" captions were kept from training, "heldout" ones hold a kind-color pair that '
            "training never showed; errors are mean absolute ones of scores in [0, 1]."
        )
        rows = dict.fromkeys(k for row in table.values() for k in row)
        table = {k: {split: row[k] for split, row in table.items()} for k in rows}
    elif table and name == "autoencoder":
        parts.append("**Quality** on unseen scenes.")
    elif table:
        parts.append(
            "**Accuracy** on 1,000 unseen scenes each: share of captions fulfilled as read back; look_error is "
            "the mean absolute error of contrast, saturation, harmony, balance and clutter."
        )
    if table:
        parts.append(_rows(table))
    if "policy" in record:
        parts.append(
            f"**Headroom.** The same as the notebooks draw what they train: {record['policy']['steps']} steps at "
            f"guidance {record['policy']['guidance']}."
        )
        parts.append(_rows(record["policy_quality"]))
    if "beside_teacher" in record:
        parts.append(
            "**Beside its teacher**, unseen captions of two kinds of things with counts, two pictures each; correct "
            "is the share of exact answers by the truth meter, sharpness ten times the mean absolute Laplacian of "
            "luma, diversity the distance of two pictures of one caption."
        )
        parts.append(_rows(record["beside_teacher"]))
    if (folder / "samples.png").exists():
        parts.append(
            f"![Grid of pictures drawn by the {name} model, one caption a column](samples.png)"
        )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write README.md into every model folder that exists."""
    for name in ABOUT:
        if (MODELS / name).is_dir():
            (MODELS / name / "README.md").write_text(card(name))


if __name__ == "__main__":
    main()
