"""The cells of the full profile, run on tiny random pipelines of the class that the profile names."""

import ast
import importlib.util

import nbformat
import pytest

from ci import series as runner
from rlgenkit.commands import run
from rlgenkit.commands.places import ROOT, find
from tests.tiny_pipelines import save_pipeline

# notebook -> pipeline class, settings made small, wheel that the full profile needs
CASES = {
    "01_ddpo": ("StableDiffusionPipeline", {
        "judge": str(ROOT / "data" / "models" / "clip"), "iterations": 2, "images": 8,
        "denoising_steps": 3, "trained_steps": 2, "round": 1, "looks": 8, "short": 1}, None),
    "02_flow_grpo": ("StableDiffusion3Pipeline", {
        "iterations": 2, "groups": 2, "group_size": 4, "sde_steps": 4, "ode_steps": 2,
        "eval_prompts": 2}, "rapidocr_onnxruntime"),
    "11_spo": ("StableDiffusion3Pipeline", {
        "updates": 20, "control": 3, "pool": 2, "image_updates": 1, "group": 4,
        "sde": 2}, None),
}  # fmt: skip


def shrunk(name: str, changes: dict, target):
    """A copy of the notebook whose "full" preset is changed; every other cell stays as it is."""
    nb = nbformat.read(find(name), as_version=4)
    cell = next(c for c in nb.cells if "wb.parameters(" in c.source)
    calls = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call)]
    node = next(k.value for c in calls for k in c.keywords if k.arg == "presets")
    presets = ast.literal_eval(node)
    presets["full"] |= changes
    cell.source = cell.source.replace(ast.get_source_segment(cell.source, node), repr(presets))
    nbformat.write(nb, target)
    return target


@pytest.mark.parametrize("name", CASES)
def test_full_profile_runs_on_a_tiny_pipeline(name, tmp_path):
    pipeline, changes, wheel = CASES[name]
    if wheel and importlib.util.find_spec(wheel) is None:
        pytest.skip(f"the full profile of {name} needs the wheel {wheel}")
    save_pipeline(pipeline, tmp_path / "model")
    path = shrunk(name, changes | {"model": str(tmp_path / "model")}, tmp_path / f"{name}.ipynb")
    parameters = {"profile": "full", "device": "cpu", "n_seeds": 1}
    done = run.execute(path, parameters, tmp_path / "run", 180 * runner.busy(), quiet=True,
                       env=runner.offline())
    log = tmp_path / "run" / "run.log"
    tail = log.read_text(encoding="utf-8")[-3000:] if log.is_file() else "no log"
    assert done.code == 0, f"{done.sentence}\n{tail}"
    assert done.results()["profile"] == "full"
