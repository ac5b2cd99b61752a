"""The cells of the full profile, run on tiny random models of the class that the profile names."""

import ast
import importlib.util
import json
import os
from pathlib import Path

import filelock
import nbformat
import numpy as np
import pytest
import torch

from ci import closure
from ci import series as runner
from rlgenkit.commands import committed, run
from rlgenkit.commands.places import BUILD, ROOT, find
from data.models.vision_language import train as training
from rlgenkit.workbook.parameters import declared
from rlgenkit.worlds import gridworld as grid
from tests import tiny_pipelines
from tests.tiny_pipelines import letter_tokenizer, save_language_model, save_published

RECORD = ROOT / "ci" / "full_profile.json"


def published(name: str):
    """Maker of a parameter `model`: a tiny pipeline with the index and scheduler of this model."""

    def make(folder):
        save_published(name, folder / "model")
        return {"model": str(folder / "model")}

    return make


def consistency_and_rival(folder):
    """A tiny latent consistency model, a tiny diffusion model and the small dual encoder."""
    save_published("lcm-dreamshaper-v7", folder / "model")
    save_published("stable-diffusion-v1-5", folder / "rival")
    clip = str(ROOT / "data" / "models" / "clip")
    return {"model": str(folder / "model"), "rival": str(folder / "rival"), "judge": clip}


def encoder(kind: str, **parameters):
    """Maker of a parameter `encoder`: a folder with a tiny language model of this type."""

    def make(folder):
        save_language_model(kind, folder / "encoder")
        return {"encoder": str(folder / "encoder"), **parameters}

    return make


def vision_language(folder):
    """A folder with an untrained vision-language model of two thin layers a side."""
    training.WIDTH, training.VISION_LAYERS, training.LAYERS, kept = (
        32,
        2,
        2,
        (training.WIDTH, training.VISION_LAYERS, training.LAYERS),
    )
    torch.manual_seed(0)
    training.build().save_pretrained(folder / "model")
    training.WIDTH, training.VISION_LAYERS, training.LAYERS = kept
    training.build_processor().save_pretrained(folder / "model")
    return {"model": str(folder / "model")}


def own_pairs(folder):
    """A language model and a file of 60 preference pairs, the longer text chosen."""
    words = "the cable works well and I would buy it again".split()
    rows = [
        {
            "chosen": f"{words[k % 10]} {k} " + " ".join(words[: 2 + k % 8]),
            "rejected": f"{words[-1 - k % 10]} {k}",
        }
        for k in range(60)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return encoder("llama", pairs_file=str(path))(folder)


def people(folder):
    """Labels in the format of the authors' arrays: 80 pairs of walks with both answers."""
    draw = torch.Generator().manual_seed(0)
    board, walks = grid.delivery_board(), []
    for _ in range(2):
        found = grid.sample_segments(board, 80, 3, draw)
        live = board.starts[found.states[:, :-1], None]
        begin = torch.stack([found.states[:, 0] // 10, found.states[:, 0] % 10], 1)
        walks.append(torch.cat([begin[:, None], torch.tensor(grid.MOVES)[found.actions] * live], 1))
    for name, array in (("segment_pairs", torch.stack(walks, 1)), ("Y", torch.arange(80) % 2)):
        np.save(folder / f"Privileged-Control_full_filtered_{name}.npy", array.numpy())
    return {"human_labels": str(folder)}


def writer(folder):
    """A tiny language model for `text_model`."""
    save_language_model("llama", folder / "writer")
    return {"text_model": str(folder / "writer")}


def sentences_and_eyes(folder):
    """A tiny sentence encoder and an untrained vision-language model as a judge."""
    save_language_model("mpnet", folder / "encoder")
    return {"encoder": str(folder / "encoder"), "judge_model": vision_language(folder)["model"]}


def feelings(folder):
    """A tiny sentiment classifier of RoBERTa's class and the small dual encoder."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    letter_tokenizer().save_pretrained(folder / "tone")
    torch.manual_seed(0)
    named = {0: "negative", 1: "neutral", 2: "positive"}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=200, intermediate_size=16, id2label=named, **sizes)
    RobertaForSequenceClassification(config).save_pretrained(folder / "tone")
    clip = str(ROOT / "data" / "models" / "clip")
    return {"encoder": clip, "tone_net": str(folder / "tone")}


def writer_and_judge(folder):
    """One tiny language model that writes rubrics and judges."""
    save_language_model("llama", folder / "model")
    return {name: str(folder / "model") for name in ("generator_model", "judge_model")}


def painter_and_writer(folder):
    """A tiny flow pipeline for `model` and a tiny language model for `text_model`."""
    save_published("stable-diffusion-3.5-medium", folder / "model")
    save_language_model("llama", folder / "writer")
    return {"model": str(folder / "model"), "text_model": str(folder / "writer")}


def few_step(folder):
    """A tiny flow pipeline for `model` and an adapter of it for `student`."""
    from rlgenkit.models import add_lora, load_policy, save_adapter

    save_published("stable-diffusion-3.5-medium", folder / "model")
    network = load_policy(folder / "model").network
    add_lora(network, 2)
    save_adapter(network, folder / "student")
    return {"model": str(folder / "model"), "student": str(folder / "student")}


def painter_and_eyes(folder):
    """A tiny flow pipeline, the small dual encoder, and a tiny vision-language model that plays two."""
    save_published("stable-diffusion-3.5-medium", folder / "model")
    eyes = vision_language(folder / "eyes")["model"]
    clip = str(ROOT / "data" / "models" / "clip")
    return {"model": str(folder / "model"), "judge": clip, "inspector": eyes, "witness": eyes}


def painter_of_small_pictures(folder):
    """A tiny FLUX, told a size of its latents (else 128), and the small dual encoder."""
    save_published("flux.1-dev", folder / "model")
    path = folder / "model" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 16}))
    return {"model": str(folder / "model"), "judge": str(ROOT / "data" / "models" / "clip")}


def painters_and_critics(folder):
    """Two tiny flow pipelines, a tiny DINOv2, and the small dual encoder as preference and judge."""
    from transformers import Dinov2Config, Dinov2Model

    for name in ("model", "stronger"):
        save_published("stable-diffusion-3.5-medium", folder / name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1}
    config = Dinov2Config(image_size=32, patch_size=8, **sizes)
    Dinov2Model(config).save_pretrained(folder / "backbone")
    clip = str(ROOT / "data" / "models" / "clip")
    own = {name: str(folder / name) for name in ("model", "stronger", "backbone")}
    return {**own, "proxy": clip, "judge": clip}


def eyes_and_reader(folder):
    """The small dual encoder, and a tiny sequence classifier with one output for `text_reward`."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    save_language_model("qwen3", folder / "reader")
    config = AutoConfig.from_pretrained(folder / "reader", num_labels=1)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reader")
    clip = str(ROOT / "data" / "models" / "clip")
    return {"encoder": clip, "text_reward": str(folder / "reader")}


def painter_and_critic(folder):
    """A tiny FLUX with small latents for `painter` and a tiny vision-language model for `critic`."""
    made = painter_of_small_pictures(folder)
    return {"painter": made["model"], "critic": vision_language(folder / "critic")["model"]}


def eyes_and_votes(folder):
    """The small dual encoder, and a file of votes in EVA's form."""
    votes = ["image_id=user_id=score"]
    for user in range(12):
        votes += [f"{item}={user}={(user * item) % 7}" for item in range(40)]
    (folder / "votes.csv").write_text("\n".join(votes) + "\n")
    clip = str(ROOT / "data" / "models" / "clip")
    return {"encoder": clip, "ratings_file": str(folder / "votes.csv")}


def eyes_and_annotator(folder):
    """The small dual encoder, and the small vision-language model: an untrained one only has ties."""
    place = ROOT / "data" / "models"
    return {"encoder": str(place / "clip"), "annotator": str(place / "vision_language")}


# notebook -> maker of what the full profile names, settings made small, wheel that it needs
CASES = {
    "01_ddpo": (published("stable-diffusion-v1-5"), {
        "judge": str(ROOT / "data" / "models" / "clip"), "iterations": 2, "images": 8,
        "steps": 3, "trained_steps": 2, "round": 1, "looks": 8}, None),
    "02_flow_grpo": (published("stable-diffusion-3.5-medium"), {
        "iterations": 2, "groups": 2, "group_size": 4, "rival_rounds": 2, "steps": 4,
        "exam_steps": 2, "exam_captions": 2, "exam_every": 2}, "rapidocr_onnxruntime"),
    "03_rewards_and_truth": (lambda folder: {}, {
        "prompts": 2, "pool": 16, "steps": 2, "pairs": 3, "teachers": 1, "labels": [32, 64],
        "lesson": 64, "sums": 2}, None),
    "10_regret_preferences": (people, {
        "labels": 64, "boards": 2, "steps": 20, "pairs": 100}, None),
    "11_spo": (published("stable-diffusion-3.5-medium"), {
        "updates": 20, "control": 3, "pool": 2, "image_updates": 1, "group": 4,
        "sde": 2}, None),
    "12_secrets_rm": (own_pairs, {
        "pairs": 200, "voters": 5, "epochs": 2, "hidden": 16, "steps": 5}, None),
    "14_openrubrics": (writer_and_judge, {
        "pairs": 40, "sizes": [20], "exam": 12, "epochs": 1, "votes": 3, "real_pairs": 2,
        "words": 8}, None),
    "13_skywork_v2": (eyes_and_reader, {
        "pool": 180, "human": 10, "hidden": 4, "rounds": 1, "first_judged": 40, "fetch": 20,
        "searched": 180, "exam": 12, "picks": 3, "updates": 5, "gold_updates": 5,
        "texts": 60}, None),
    "15_opinpref": (encoder("mpnet", axes=8), {
        "splits": 2, "steps": 4, "attacked": 4, "sizes": [10, 40, 160, 640]}, None),
    "16_rluf": (encoder("qwen3"), {
        "captions": 500, "impressions": 4000, "steps": 8, "draws": 5}, None),
    "17_vpl": (lambda folder: {}, {
        "steps": 20, "people": 8, "iterations": 1, "hidden": 8, "judged": 48, "images": 8,
        "draws": 5}, None),
    "18_pamela": (eyes_and_votes, {
        "pictures": 60, "exam": 24, "users": 12, "new_users": 4, "asked": 0.5, "steps": 3,
        "captions": 1, "draws": 1, "batch": 16}, None),
    "19_dpa": (writer, {
        "iterations": 1, "things": 2, "directions": 1, "n": 2, "labeled": 40, "base": 1, "fit": 1,
        "batch": 4, "new": 6, "judged": 1}, None),
    "20_rpcd": (feelings, {
        "train": 60, "test": 20, "pool": 24, "requests": 1, "head_steps": 3}, None),
    "21_visionprefer": (eyes_and_annotator, {
        "prompts": 15, "human": 20, "exam": 8, "few": [20, 40], "lessons": 5, "updates": 3,
        "iterations": 1, "groups": 2, "copies": 3}, None),
    "22_aes_r1": (vision_language, {
        "labels": 16, "iterations": 2, "tests": 8, "doses": [0, 1, 2], "few": 8}, None),
    "24_unifiedreward_flex": (sentences_and_eyes, {
        "labels": 40, "drafts": 2, "iterations": 2, "group": 4, "schooling": 8, "copies": 1,
        "epochs": 1, "updates": 2, "captions": 4, "exam": 60, "duels": 2}, None),
    "23_rationalrewards": (painter_and_critic, {
        "pairs": 60, "lessons": 20, "learning": 10, "epochs": 1, "exam": 60, "wishes": 100,
        "groups": 2, "iterations": 10, "words": 8}, None),
    "27_critique_rl": (lambda folder: {}, {
        "stage": 2, "prompts": 8, "test": 60, "pool": 100, "fit": 5}, None),
    "32_d3po": (published("stable-diffusion-v1-5"), {
        "judge": str(ROOT / "data" / "models" / "clip"), "rounds": 1, "prompts": 6, "copies": 4,
        "shares": 1, "steps": 3, "looks": 2, "chain": 6}, None),
    "30_raft": (painter_and_writer, {
        "ranker": str(ROOT / "data" / "models" / "clip"),
        "judge": str(ROOT / "data" / "models" / "clip"), "k": 2, "prompts": 2, "stages": 2,
        "fits": 1, "corpus": 3, "exam": 4, "captions": 1, "image_stages": 2, "image_fits": 1,
        "image_steps": 2, "pixels": 12, "looks": 2}, None),
    "31_rlcm": (consistency_and_rival, {
        "horizon": 4, "iterations": 3, "images": 8, "rival_steps": 4, "looks": 8, "probes": 4,
        "measured": [2], "chunk": 4, "rank": 4}, None),
    "33_seppo": (published("stable-diffusion-v1-5"), {
        "judge": str(ROOT / "data" / "models" / "clip"),
        "meter": str(ROOT / "data" / "models" / "clip"), "updates": 2, "every": 1, "winners": 4,
        "batch": 2, "steps": 3, "rank": 2, "looks": 2, "probes": 1, "small_seeds": 1,
        "small_updates": 10}, None),
    "34_instructengine": (published("stable-diffusion-v1-5"), {
        "matcher": str(ROOT / "data" / "models" / "clip"),
        "judge": str(ROOT / "data" / "models" / "clip"), "drafts": 96, "pairs": 4, "updates": 2,
        "batch": 4, "micro": 2, "steps": 2, "every": 1, "look": 4, "exam": 8, "probes": 2,
        "rank": 2, "toys": 5}, None),
    "35_itercomp": (published("stable-diffusion-xl-base-1.0"), {
        "eyes": str(ROOT / "data" / "models" / "clip"),
        "judge": str(ROOT / "data" / "models" / "clip"), "prompts": 2, "rounds": 2, "updates": 2,
        "batch": 3, "micro": 2, "steps": 3, "first": 1, "epochs": 1, "refresh": 1, "exam": 1, "look": 1,
        "every": 1, "rank": 2, "toys": 5, "toy_updates": 3}, None),
    "36_parrot": (published("stable-diffusion-v1-5"), {
        "judge": str(ROOT / "data" / "models" / "clip"), "iterations": 2, "prompts": 1,
        "copies": 6, "small_steps": 5, "small_seeds": 1, "steps": 3, "trained_steps": 2,
        "rank": 2, "looks": 8, "crowd": 6, "every": 1}, None),
    "37_reward_hacking": (painter_and_eyes, {
        "iterations": 2, "look": 1, "groups": 1, "group_size": 4, "exam_prompts": 2, "steps": 4,
        "exam_steps": 2, "pool_prompts": 2, "pool": 2, "pairs": 7, "rank": 4}, None),
    "39_tdm_r1": (few_step, {
        "iterations": 2, "groups": 2, "group_size": 4, "exam_captions": 2, "exam_every": 1,
        "teacher_steps": 2, "rank": 4, "chunk": 4, "probes": 1, "plane_runs": 2,
        "plane_rounds": 2}, "rapidocr_onnxruntime"),
    "38_adv_grpo": (painters_and_critics, {
        "iterations": 2, "look": 1, "n_seeds": 1, "groups": 1, "group_size": 4, "exam_prompts": 2,
        "train_prompts": 3, "references": 2, "pool": 2, "steps": 4, "exam_steps": 2, "rank": 4,
        "lessons": 1, "first_lessons": 3, "batch": 4, "small_runs": 2, "small_rounds": 6}, None),
    "40_attrictrl": (painter_of_small_pictures, {
        "updates": 3, "batch": 4, "tokens": 2, "pictures": 24, "prompts": 3, "probed": 2,
        "every": 2, "steps": 2, "rounds": 1, "copies": 2, "rl_steps": 2, "rank": 2, "chunk": 12},
        None),
    "50_barfi": (lambda folder: {}, {
        "inner": 5, "outer": 2, "terms": 20, "control_steps": 8, "control_seeds": 1,
        "chain_outer": 2, "episodes": 50, "batches": 3}, None),
    "51_lipschitz_gail": (lambda folder: {"world": "pendulum"}, {
        "steps": 60, "every": 20, "warmup": 15}, None),
}  # fmt: skip


def shrunk(name: str, changes: dict, target):
    """A copy of the notebook whose "full" preset is changed; every other cell stays as it is."""
    nb = nbformat.read(find(name), as_version=4)
    cell = next(c for c in nb.cells if "wb.parameters(" in c.source)
    calls = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)]
    given = {k.arg: k.value for c in calls for k in c.keywords if k.arg in ("presets", "table")}
    kind, node = next(iter(given.items()))
    presets = declared(find(name)).presets
    presets["full"] |= changes
    old = f"{kind}={ast.get_source_segment(cell.source, node)}"
    assert old in cell.source
    cell.source = cell.source.replace(old, f"presets={presets!r}")
    nbformat.write(nb, target)
    return target


def case_text(name: str) -> str:
    """The case's own lines in this file and those of the makers that it names."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    makers = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    table = next(
        n.value
        for n in tree.body
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "CASES"
    )
    todo, seen = [dict(zip([k.value for k in table.keys], table.values))[name]], []
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.append(node)
            todo += [
                makers[n.id] for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in makers
            ]
    return json.dumps(sorted(map(json.dumps, map(committed.syntax, seen))))


def key(name: str) -> str:
    """What decides whether the dry run of `name` passes; the same on every machine."""
    pipelines = Path(tiny_pipelines.__file__).read_text(encoding="utf-8")
    return closure.key(find(name), "full", case_text(name), pipelines, machine=False)


def known() -> dict[str, str]:
    """notebook -> key at which its dry run passed last."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def record(name: str) -> None:
    """Write into ci/full_profile.json that `name` passed."""
    with filelock.FileLock(BUILD / "full_profile.lock"):
        text = json.dumps({**known(), name: key(name)}, indent=1, sort_keys=True)
        RECORD.write_text(text + "\n", encoding="utf-8")


@pytest.mark.executes
@pytest.mark.parametrize("name", CASES)
def test_full_profile_runs_on_tiny_models(name, tmp_path, request):
    """Runs where the notebook or what it reaches changed since the last recorded pass; all of them
    where RLGENKIT_ALL is set, as it is once a week."""
    if known().get(name) == key(name) and not os.environ.get("RLGENKIT_ALL"):
        pytest.skip(f"nothing that {name} reaches changed since its full profile passed")
    make, changes, wheel = CASES[name]
    if wheel and importlib.util.find_spec(wheel) is None:
        pytest.skip(f"the full profile of {name} needs the wheel {wheel}")
    path = shrunk(name, changes, tmp_path / f"{name}.ipynb")
    parameters = {"profile": "full", "device": "cpu", "n_seeds": 1, **make(tmp_path)}
    done = run.execute(
        path, parameters, tmp_path / "run", runner.HANG_S, quiet=True, env=runner.offline()
    )
    log = tmp_path / "run" / "run.log"
    tail = log.read_text(encoding="utf-8")[-3000:] if log.is_file() else "no log"
    assert done.code == 0, f"{done.sentence}\n{tail}"
    assert done.results()["profile"] == "full"
    if request.config.getoption("record"):
        record(name)


def test_the_record_names_cases_of_today():
    assert set(known()) <= set(CASES)
