"""The run record: phases resume to the bit, follow code and values, survive damage and neighbors."""

import errno
import functools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import safetensors.torch
import torch

from rlgenkit import workbook as wb
from rlgenkit.records import Scores
from rlgenkit.workbook import checkpoint, claims
from rlgenkit.workbook import run as run_module
from rlgenkit.workbook.fingerprint import Reach, Unhashable

VALUES = {"profile": "default", "seed": 0, "n_seeds": 3, "device": "cpu", "steps": 10, "clip": 0.2}


def started(folder, **changes):
    values = {**VALUES, "out_dir": str(folder), **changes}
    values["seeds"] = [*range(values["seed"], values["seed"] + values["n_seeds"])]
    return wb.start(
        wb.Parameters("98_trial", values),
        "Trial",
        {"title": "T", "year": 2023, "arxiv": "2305.13301"},
    )


def train(run):
    gen = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=gen))
    opt = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    ema = [w.detach().clone() for w in net.parameters()]
    state = {"net": net, "opt": opt, "gen": gen, "ema": ema, "best": {"reward": 0.0}}
    for phase in ("a/seed0", "a/seed1"):
        for step in run.steps(9, phase, state, every=2):
            loss = net(torch.randn(8, 3, generator=gen)).square().mean(1)
            # The global generators are restored as well.
            loss = loss + torch.rand(8) + random.random() + float(np.random.rand())
            opt.zero_grad()
            loss.mean().backward()
            opt.step()
            for mean, weight in zip(ema, net.parameters()):
                mean.lerp_(weight.detach(), 0.1)
            state["best"]["reward"] = max(state["best"]["reward"], -loss.mean().item())
            run.log(step, reward=-loss, samples={"rewards": -loss})
            if (phase, step) == getattr(run, "kill_at", None):
                os.kill(os.getpid(), signal.SIGKILL)
    draw = run.result("draw", lambda: torch.rand(2, generator=gen))
    draws = [draw, torch.rand(2, generator=gen)]
    return [*net.state_dict().values(), *ema, torch.tensor(state["best"]["reward"]), *draws]


def test_a_run_says_nothing_of_torchvision(tmp_path):
    started(tmp_path)
    told = logging.getLogger("transformers.utils.import_utils")
    assert not told.isEnabledFor(logging.WARNING) and told.isEnabledFor(logging.ERROR)


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def train_until_killed(folder):
    seed_all(0)
    run = started(folder)
    run.kill_at = ("a/seed1", 5)  # not an argument: that would be something the loop depends on
    train(run)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_killed_run_resumes_to_the_same_bits(tmp_path):
    seed_all(0)
    whole = train(started(tmp_path / "whole"))
    # A fresh process, not a fork: a fork inherits locks of torch's threads and can wait forever.
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=train_until_killed, args=(tmp_path / "cut",))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 9 + 6  # the line of the killed step is there, its checkpoint is not
    seed_all(0)
    resumed = train(started(tmp_path / "cut"))
    assert same(whole, resumed)
    random.random(), np.random.rand()  # start() seeds those that differ from process to process
    torch.manual_seed(0)
    run = started(tmp_path / "cut")
    assert same(whole, train(run)) and run.computed == []  # all restored, nothing run
    logs = [(tmp_path / folder / "metrics.jsonl").read_bytes() for folder in ("whole", "cut")]
    assert logs[0] == logs[1] and logs[0].count(b"\n") == 18


def test_an_interrupted_loop_goes_on_in_the_same_session(tmp_path):
    run, net = started(tmp_path), torch.nn.Linear(2, 1)
    run.interrupt_at, run.done = 3, []
    with torch.no_grad():
        net.weight.fill_(1.0)

    def cell():
        for step in run.steps(6, "a", {"net": net}, every=2):
            with torch.no_grad():
                net.weight.mul_(2)
            if step == run.interrupt_at:
                raise KeyboardInterrupt
            run.done.append(step)

    with pytest.raises(KeyboardInterrupt) as kept:  # keeps the traceback, as a kernel does
        cell()
    run.interrupt_at = None
    cell()
    assert run.done == [0, 1, 2, 2, 3, 4, 5] and net.weight[0, 0] == 2.0**6
    assert kept.value is not None


def test_a_break_keeps_what_the_loop_did(tmp_path):
    run, total = started(tmp_path), torch.zeros(1)
    for step in run.steps(9, "a", {"total": total}):
        total += 1
        if step == 3:
            break
    assert total == 4


def test_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.ones(3), "k": [1, (2, None)], "n": {3: np.arange(2)}})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        words = r"^a\.safetensors in the folder .*No space left.*before is intact.*to resume$"
        with pytest.raises(wb.ParameterError, match=words):
            checkpoint.save(path, {"x": torch.zeros(3)})
    back = checkpoint.load(path)
    assert torch.equal(back["x"], torch.ones(3)) and back["k"] == [1, (2, None)]
    assert back["n"][3].tolist() == [0, 1] and [f.name for f in tmp_path.iterdir()] == [path.name]


# --- what a phase depends on

SOURCE = """
RATE = 0.1
ARMS = {"moderate": (0.1, 1.0)}
COLORS = ["red"]

def helper(x):
    '''Doc.'''
    return RATE * x  # a comment

def train(run, scale=1.0):
    total = []
    for step in run.steps(3, "a"):
        total.append(helper(step) * ARMS["moderate"][1] * p.clip * scale)
        run.log(step, reward=total[-1])
    return run.result("sum", lambda: sum(helper(k) for k in range(3)))

def plot():
    return COLORS[0]
"""


def session(folder, source=SOURCE, call="train(run)", **changes):
    """Run the source as a notebook's cells would be; the names of what was computed."""
    run = started(folder, **changes)
    space = {"__name__": "__main__", "run": run, "p": run.parameters}
    exec(compile(source, "<cell>", "exec"), space)
    exec(compile(call, "<cell 2>", "exec"), space)
    return run.computed


@pytest.mark.parametrize(
    "before, after, again",
    [
        ("# a comment", "# another comment", []),
        ("'''Doc.'''", "'''Another text.'''", []),
        ('COLORS = ["red"]', 'COLORS = ["blue"]', []),
        ("return COLORS[0]", "return COLORS[-1]", []),
        ("    total = []\n", "    total = []\n\n\n", []),
        ("RATE = 0.1", "RATE = 0.2", ["a", "sum"]),
        ('{"moderate": (0.1, 1.0)}', '{"moderate": (0.1, 5.0)}', ["a"]),
        ("return RATE * x", "return RATE + x", ["a", "sum"]),
        ("scale=1.0", "scale=2.0", ["a"]),
    ],
)
def test_what_a_phase_reaches_decides_whether_it_runs_again(tmp_path, before, after, again):
    assert session(tmp_path) == ["a", "sum"] and session(tmp_path) == []
    assert before in SOURCE
    assert session(tmp_path, SOURCE.replace(before, after)) == again
    assert session(tmp_path) == []  # the first version is still there


def test_the_record_names_the_code_that_ran(tmp_path, monkeypatch, capsys):
    def code(source=SOURCE, **changes):
        run = started(tmp_path / str(len(changes)), **changes)
        space = {"__name__": "__main__", "run": run, "p": run.parameters}
        exec(compile(source + "train(run)", "<cell>", "exec"), space)
        said = capsys.readouterr().out.splitlines()[-1]
        return run.results()["provenance"]["code"]["phases"], said

    first, again = code(), code()
    assert first == again  # computed or restored: the same hash, the same words
    assert code(SOURCE.replace("# a comment", "# another"))[0] == first[0]
    assert code(SOURCE.replace("RATE = 0.1", "RATE = 0.2"))[0] != first[0]
    assert code(clip=0.3)[0] != first[0]
    found = {"diff": "", "rev-parse": "abc"}
    room = sys.modules["rlgenkit.workbook.provenance"]
    monkeypatch.setattr(room, "_git", lambda *words: found[words[0]])
    assert wb.provenance("cpu", {})["commit"] == "abc"
    found["diff"] = None  # the package is not as committed
    assert wb.provenance("cpu", {})["commit"] is None


def test_only_the_parameters_that_are_read_count(tmp_path):
    assert session(tmp_path / "a") == ["a", "sum"]
    for folder, changes, again in (("b", {"clip": 0.3}, ["a"]), ("c", {"steps": 11}, [])):
        shutil.copytree(tmp_path / "a", tmp_path / folder)
        (tmp_path / folder / "run.json").unlink()
        assert session(tmp_path / folder, **changes) == again


def test_a_loop_in_a_cell_depends_on_what_it_reads_not_on_what_it_writes(tmp_path):
    cell = (
        "for step in run.steps(3, 'a'):\n    now = step * weight\n    run.log(step, reward=now)\n"
    )
    head = "weight, other, now = {}, {}, {}\n"
    assert session(tmp_path, head.format(1, 1, 0), cell) == ["a"]
    assert session(tmp_path, head.format(1, 2, 7), cell) == []
    assert session(tmp_path, head.format(2, 1, 0), cell) == ["a"]


def test_the_package_counts_by_the_functions_used(tmp_path, monkeypatch):
    from rlgenkit import optimizers
    from rlgenkit.optimizers import advantages, losses

    source = "from rlgenkit import optimizers\ndef f():\n    return optimizers.group_advantages\n"
    call = "run.result('x', lambda: f() and 1)"
    assert session(tmp_path, source, call) == ["x"] and session(tmp_path, source, call) == []
    monkeypatch.setattr(losses, "ppo_clip_loss", lambda *x: 0)
    assert session(tmp_path, source, call) == []
    monkeypatch.setattr(advantages, "group_advantages", lambda *x: 0)
    monkeypatch.setattr(optimizers, "group_advantages", advantages.group_advantages, raising=False)
    assert session(tmp_path, source, call) == ["x"]


def test_weights_generators_and_closures_are_values():
    net, gen = torch.nn.Linear(2, 1), torch.Generator().manual_seed(0)
    scale = [2.0]

    def phase():
        return net(torch.randn(1, 2, generator=gen)) * scale[0]

    def digest():
        reach = Reach()
        reach.feed(phase, "phase")
        return reach.digest(), reach.generators

    first, drawn = digest()
    assert drawn == [gen] and digest()[0] == first
    with torch.no_grad():
        net.weight[0, 0] += 1e-3
    second = digest()[0]
    torch.randn(1, generator=gen)
    third = digest()[0]
    scale[0] = 3.0
    assert len({first, second, third, digest()[0]}) == 4


def test_what_cannot_be_hashed_is_computed_anew(tmp_path, capsys):
    run, lock = started(tmp_path), __import__("threading").Lock()
    for _ in range(2):
        run.result("x", lambda: lock.locked() or 1)
    assert run.computed == ["x", "x"] and "computed anew" in capsys.readouterr().out
    with pytest.raises(Unhashable, match="`lock`"):
        Reach().feed(lock, "lock")


def test_generators_that_a_result_draws_from_go_on_as_if_it_had_run(tmp_path):
    def draws():
        gen, numpy_gen = torch.Generator().manual_seed(1), np.random.default_rng(1)
        run = started(tmp_path)
        first = run.result("x", lambda: [torch.rand(2, generator=gen), numpy_gen.random(2)])
        return run.computed, [
            first[0],
            torch.tensor(first[1]),
            torch.rand(2, generator=gen),
            torch.tensor(numpy_gen.random(2)),
        ]

    (one, first), (two, second) = draws(), draws()
    assert (one, two) == (["x"], []) and same(first, second)


def test_a_restored_result_brings_the_curves_of_its_loops_and_leaves_weights_alone(tmp_path):
    weight = torch.ones(1, requires_grad=True)

    def trained():
        for step in run.steps(2, "inner", {"weight": weight}):
            with torch.no_grad():
                weight.add_(1)
            run.log(step, reward=weight.item())
        return weight.detach().clone()

    for again in (False, True):
        run = started(tmp_path)
        assert run.result("x", trained).item() == 3 and weight.item() == 1
        assert run.metrics("inner")["reward"].tolist() == [2.0, 3.0]
        assert run.computed == ([] if again else ["inner", "x"])


def test_what_an_object_remembers_on_the_way_does_not_count(tmp_path):
    @dataclass
    class Encoder:
        scale: float
        cache: dict = field(default_factory=dict, compare=False)

    encoder = Encoder(2.0)

    def digest():
        reach = Reach()
        reach.feed(encoder, "encoder")
        return reach.digest()

    first = digest()
    encoder.cache["a"] = 1
    assert digest() == first
    encoder.scale = 3.0
    assert digest() != first


def test_lists_and_tables_of_own_modules_count():
    class Net(torch.nn.Module):
        def __init__(self, scales):
            super().__init__()
            self.layer, self.scales, self.size = torch.nn.Identity(), scales, 3

    def digest(*scales):
        reach = Reach()
        reach.feed(Net(scales), "net")
        return reach.digest()

    assert digest(0.1, 1.0) == digest(0.1, 1.0) != digest(0.1, 5.0)


@pytest.mark.parametrize("line", ["import pack.a", "import pack as P", "from pack import a"])
def test_a_module_imported_inside_a_function_counts(tmp_path, monkeypatch, line):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("from . import a")

    def digest(body):
        (tmp_path / "pack" / "a.py").write_text(f"def f():\n    return {body}\n")
        for name in ("pack", "pack.a"):
            sys.modules.pop(name, None)
        space = {"__name__": "__main__"}
        exec(f"import pack.a\ndef g():\n    {line}\n    return 1", space)
        reach = Reach()
        reach.feed(space["g"], "g")
        return reach.digest()

    assert digest("1") == digest("1") != digest("22")


def test_a_phase_that_reads_curves_follows_the_phases_before(tmp_path):
    source = """
RATE = {}
def arm():
    for step in run.steps(2, "a"):
        run.log(step, reward=RATE * step)
def judge():
    return run.result("last", lambda: run.metrics("a")["reward"][-1])
"""
    assert session(tmp_path, source.format(0.1), "arm(); judge()") == ["a", "last"]
    assert session(tmp_path, source.format(0.1), "arm(); judge()") == []
    assert session(tmp_path, source.format(0.2), "arm(); judge()") == ["a", "last"]


@pytest.mark.parametrize(
    "make", [random.Random, np.random.RandomState, np.random.default_rng], ids=lambda m: m.__name__
)
def test_generators_of_every_library_are_reached_restored_and_stored(tmp_path, make):
    def draws(seed):
        gen, run = make(seed), started(tmp_path)
        first = run.result("x", lambda: float(gen.random()))
        for _ in run.steps(1, "a", {"gen": gen}):
            gen.random()
        return run.computed, [first, float(gen.random())]

    (one, first), (two, second), (three, other) = draws(1), draws(1), draws(2)
    assert (one, two, three) == (["x", "a"], [], ["x", "a"]) and first == second != other


SEEDED = """
torch.manual_seed(SEED)
draw = run.result("draw", lambda: torch.rand(1).item())
torch.manual_seed(SEED)
run.result("still", lambda: 1)
after = run.result("after", lambda: torch.rand(1).item())
for step in run.steps(2, "loop"):
    run.log(step, reward=torch.rand(1))
last = run.result("last", lambda: run.metrics("loop")["reward"][1])
free = run.result("free", lambda: [random.random(), np.random.rand()])
draws = [draw, after, last, *free]
"""


def test_global_generators_count_where_a_phase_draws_from_them(tmp_path, capsys):
    def draws(seed, folder="a"):
        space = {"__name__": "__main__", "torch": torch, "np": np, "random": random, "SEED": seed}
        run = space["run"] = started(tmp_path / folder)
        exec(compile(SEEDED, "<cell>", "exec"), space)
        return space["draws"], run.computed

    drawing = ["draw", "after", "loop", "last"]
    first, computed = draws(1)
    assert sorted(computed) == sorted([*drawing, "still", "free"])
    assert draws(1) == (first, [])
    second, computed = draws(2)
    assert computed == drawing and second[:3] != first[:3] and second[3:] == first[3:]
    assert "draw: the global generators begin elsewhere" in capsys.readouterr().out
    assert draws(2) == (second, []) and draws(2, "b")[0] == second


def test_a_layer_made_before_starts_no_phase_again(tmp_path):
    """The first weights of layers come from PyTorch's global generator, in phases and outside."""

    def first_weights():
        return torch.nn.Linear(1, 1).weight.item()

    torch.seed()  # as a new process has it: anything
    run = started(tmp_path)
    assert run.result("a", first_weights) != run.result("b", first_weights)
    torch.seed()
    torch.nn.Linear(2, 2)  # a model that is loaded, a phase that another process computed
    again = started(tmp_path)
    again.result("b", first_weights)
    assert again.computed == []


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("noise", torch.ones(1), persistent=False)
        self.layer = torch.nn.Identity()

    def forward(self, x):
        return self.layer(x * self.noise)


def test_buffers_that_are_not_saved_and_hooks_count(tmp_path):
    net, factor, run = Noisy(), [2.0], started(tmp_path)

    def value():
        return run.result("x", lambda: net(torch.ones(1)).item())

    assert value() == 1
    net.noise += 1
    assert value() == 2
    hook = net.layer.register_forward_hook(lambda *args: args[-1] * factor[0])
    assert value() == 4
    factor[0] = 3.0
    assert value() == value() == 6 and run.computed == ["x"] * 4
    hook.remove()
    assert value() == 2 and run.computed == ["x"] * 4


def test_a_first_call_for_hidden_states_is_no_change(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "image_size"), 16)
    config = CLIPVisionConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, patch_size=8)
    net, run = CLIPVisionModel(config).eval(), started(tmp_path)

    def value():
        pictures = torch.zeros(1, 3, 16, 16)
        return run.result("x", lambda: net(pictures, output_hidden_states=True).hidden_states[1])

    assert torch.equal(value(), value()) and run.computed == ["x"]


@pytest.mark.parametrize(
    "body",
    [
        "open('data.txt').read()",
        "Path('data.txt').read_text()",
        "int(os.environ['VALUE'])",
        "os.getenv('VALUE')",
        "globals()['HIDDEN']",
        "eval('HIDDEN')",
        "getattr(sys.modules['__main__'], 'HIDDEN', 1)",
        "np.loadtxt('data.txt')",
        "torch.load('x')",
    ],
)
def test_a_phase_that_reads_what_it_does_not_name_is_computed_anew(body):
    space = {"__name__": "__main__"}
    exec(f"def f():\n    return {body}\ndef g():\n    return f()", space)
    with pytest.raises(Unhashable, match="it reads through `"):
        Reach().feed(space["g"], "g")
    space["__name__"] = "rlgenkit.models.folders"
    Reach().feed(space["g"], "g")


def test_the_default_type_and_the_members_of_sets_count(tmp_path):
    @dataclass(frozen=True)
    class Arm:
        rate: float

        def __repr__(self):
            return "Arm"

    run, arms = started(tmp_path), {Arm(1.0)}
    for kind in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(kind)
        assert run.result("kind", lambda: str(torch.ones(1).dtype)) == str(kind)
    for rate in (1.0, 2.0):
        arms = {Arm(rate)}
        assert run.result("rate", lambda: [arm.rate for arm in arms]) == [rate]
    assert run.computed == ["kind"] * 2 + ["rate"] * 2


# --- what comes back


@pytest.mark.parametrize(
    "value",
    [
        {"sd/unet": 1, "sd": {"unet": 2}},
        {1: "a", "1": "b"},
        {(0, 1): [1.5], None: ()},
        [True, None, -0.0, float("inf"), "ä", 2**70],
        {"deep": [{"x": (1, [2])}]},
    ],
)
def test_plain_results_come_back_equal(tmp_path, value):
    run = started(tmp_path)
    assert run.result("x", lambda: value) == value
    assert started(tmp_path).result("x", lambda: value) == value


def test_arrays_come_back_with_type_and_shape(tmp_path):
    x = np.arange(6).reshape(2, 3)
    parts = {
        "reversed": x[::-1, ::-1],
        "flat": np.array(3.5),
        "half": torch.ones(2).bfloat16(),
        "mask": torch.tensor([True]),
        "empty": torch.zeros(0, 3),
        "view": torch.ones(3, 2).T,
    }
    for run in (started(tmp_path), started(tmp_path)):
        back = run.result("x", lambda: parts)
        assert all(
            type(back[k]) is type(v)
            and back[k].dtype == v.dtype
            and back[k].shape == v.shape
            and (back[k] == v).all()
            for k, v in parts.items()
        )
    back["mask"][0] = False  # what comes back is no live view of what was passed
    assert parts["mask"].item() is True


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2, device="meta"),
        10**5000,
        functools.reduce(lambda x, _: [x], range(5000), []),
        [np.array(["a"])],
        [torch.ones(1, dtype=torch.complex128)],
    ],
    ids="sparse quantized meta digits deep words complex".split(),
)
def test_no_finished_result_is_lost(tmp_path, value, capsys):
    assert started(tmp_path).result("x", lambda: value) is value
    assert "x cannot be stored, so it is computed anew" in capsys.readouterr().out


def test_arrays_of_the_other_byte_order_are_stored(tmp_path):
    run = started(tmp_path)
    for _ in range(2):
        assert run.result("x", lambda: np.arange(3, dtype=">f4")).tolist() == [0, 1, 2]
    assert run.computed == ["x"]


@pytest.mark.parametrize("value", [Counter("a"), namedtuple("N", "a")(1), {1, 2}, [object()]])
def test_what_would_come_back_as_something_else_is_named_and_not_lost(tmp_path, value, capsys):
    run = started(tmp_path)
    assert run.result("x", lambda: value) == value
    assert "cannot be stored" in capsys.readouterr().out
    study = started(tmp_path / "study", profile="study")
    study.result("x", lambda: value)
    study.finish()  # its record leaves that result out


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
@pytest.mark.parametrize("kind", ["phases", "cache"])
def test_a_damaged_file_starts_its_phase_again(tmp_path, damage, kind, capsys):
    assert session(tmp_path) == ["a", "sum"]
    (path,) = (tmp_path / kind).glob("*.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
    path.write_bytes({"cut": data[:-5], "flip": data, "empty": b""}[damage])
    assert session(tmp_path) == (["a"] if kind == "phases" else ["sum"])
    assert "is damaged, starting it again" in capsys.readouterr().out


def test_every_flipped_bit_of_a_file_is_seen(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.arange(3), "b": "text", "c": [1.5]})
    whole = path.read_bytes()
    for k in range(0, len(whole) * 8, 7):
        data = bytearray(whole)
        data[k // 8] ^= 1 << k % 8
        path.write_bytes(data)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(path)


# --- folders and parameters


def test_other_parameters_are_refused_or_get_their_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started("x", steps=3)
    with pytest.raises(
        wb.ParameterError, match="run.json in .* is of a run with steps=3, not 4: name another"
    ):
        started("x", steps=4)
    (tmp_path / "x" / "run.json").write_text("{")
    with pytest.raises(wb.ParameterError, match="run.json in .* is damaged"):
        started("x", steps=3)
    one, two = (
        wb.start(wb.Parameters("98_trial", {**VALUES, "out_dir": None, "steps": k})) for k in (3, 4)
    )
    assert one.folder != two.folder and one.folder.parts[:2] == ("runs", "98_trial")


def test_a_folder_that_cannot_be_used_gets_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("n" * 300), "/proc/x"):
        with pytest.raises(
            wb.ParameterError, match=r"^run\.lock in the folder .* written \([^)]+\)"
        ):
            started(folder)
    started(tmp_path / "x")
    for text in ("[1]", "7", '{"a', "\xff"):
        (tmp_path / "x" / "run.json").write_text(text, encoding="latin-1")
        with pytest.raises(wb.ParameterError, match=r"run\.json in .* is damaged"):
            started(tmp_path / "x")


def test_folders_are_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "ROOT", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    here = wb.start(wb.Parameters("98_trial", {**VALUES, "out_dir": None})).folder
    assert here.parent == tmp_path / "runs" / "98_trial"
    assert started("~/r1").folder == tmp_path / "home" / "r1"


@pytest.mark.parametrize(
    "given, threads", [("3", 3), ("2,1", 2), ("", 2), ("abc", 2), ("0", 2), ("9" * 14, 2)]
)
def test_odd_numbers_of_threads_mean_two(tmp_path, monkeypatch, given, threads):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    started(tmp_path)
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    assert found == threads


def test_the_notebook_names_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("RLGENKIT_SOURCE", "98_trial abc")
    assert started(tmp_path).source == "abc"
    monkeypatch.setenv("RLGENKIT_SOURCE", "99_demo abc")
    with pytest.raises(wb.ParameterError, match='99_demo.ipynb: write .*notebook="99_demo"'):
        started(tmp_path)


def test_an_interrupt_in_a_kernel_shows_one_sentence(tmp_path, monkeypatch, capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    monkeypatch.setattr(run_module, "kernel", lambda: shell)
    started(tmp_path)
    code = "def deep():\n    raise KeyboardInterrupt\ndeep()"
    assert isinstance(shell.run_cell(code).error_in_exec, KeyboardInterrupt)
    told = capsys.readouterr()
    assert (told.out + told.err).strip() == "Interrupted: run this cell again to resume."


def test_a_second_process_in_the_folder_gets_one_sentence(tmp_path):
    run = started(tmp_path)
    code = textwrap.dedent(f"""
        from rlgenkit.workbook.store import hold
        from pathlib import Path
        hold(Path({str(tmp_path)!r}))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "wait until it has ended, stop it, or name another out_dir"
    )
    assert started(tmp_path).folder == run.folder  # the same process may open its folder again


def test_non_finite_values_name_step_sample_and_checkpoint(tmp_path):
    run = started(tmp_path)
    with pytest.raises(
        wb.NonFiniteError,
        match=r"truth is nan at step 4 of a, sample 1; the last "
        r"good checkpoint is phases/a\.\w+\.safetensors, "
        "after 4",
    ):
        for step in run.steps(9, "a", every=2):
            run.log(step, reward=1.0, truth=torch.tensor([1.0, np.nan if step == 4 else 0.0]))
    run = started(tmp_path)
    with pytest.raises(wb.NonFiniteError, match="loss is inf at step 0.*no checkpoint"):
        run.log(0, loss=float("inf"))


def test_metrics_stack_over_seeds(tmp_path):
    run = started(tmp_path)
    for seed in run.parameters.seeds:
        for step in run.steps(4, f"a/seed{seed}"):
            run.log(step, reward=torch.tensor([step, step + 2.0]) + seed)
            if step % 2:
                run.log(step, truth=1.0)
    curves = run.curves("a")
    assert curves["reward"].tolist() == [[1 + s, 2 + s, 3 + s, 4 + s] for s in (0, 1, 2)]
    assert np.isnan(curves["truth"][0]).tolist() == [True, False, True, False]
    with pytest.raises(KeyError, match="nothing was logged in phase b"):
        run.metrics("b")


def test_of_scores_the_valid_rows_are_logged(tmp_path):
    run = started(tmp_path)
    scores = Scores(torch.tensor([1.0, 0.0, 4.0]), torch.tensor([True, False, True]))
    none = Scores(torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    for step in run.steps(1, "a"):
        run.log(step, samples={"all": scores}, reward=scores, other=none, empty=torch.zeros(0))
    found = run.metrics("a")
    assert found["reward"].tolist() == [2.5] and found["all"].tolist() == [[1.0, 4.0]]
    assert set(found) == {"step", "reward", "all"}


def test_a_seed_that_stops_early_and_a_short_last_batch_leave_nan(tmp_path):
    run = started(tmp_path)
    for seed in (0, 1):
        for step in run.steps(3, f"a/seed{seed}"):
            if (seed, step) == (1, 2):
                break
            samples = {} if step == 0 else {"scores": torch.ones(3 - step)}
            run.log(step, samples=samples, reward=float(step))
    curves, nan = run.curves("a", [0, 1]), float("nan")
    np.testing.assert_equal(curves["reward"], [[0, 1, 2], [0, 1, nan]])
    np.testing.assert_equal(curves["scores"][0], [[nan, nan], [1, 1], [1, nan]])
    np.testing.assert_equal(run.metrics("a/seed0")["scores"], curves["scores"][0])
    assert curves["step"].tolist() == [[0, 1, 2]] * 2 and curves["scores"].shape == (2, 3, 2)


def test_inner_loops_give_the_name_back_and_reserved_names_are_refused(tmp_path):
    run = started(tmp_path)
    for step in run.steps(1, "outer"):
        for _ in run.steps(1, "inner"):
            run.log(0, reward=1.0)
        run.log(step, reward=2.0)
    assert run.metrics("outer")["reward"].tolist() == [2.0]
    with pytest.raises(ValueError, match="cannot be called `phase`"):
        run.log(0, phase=0.5)


def test_what_a_result_logs_bears_its_name_and_comes_back(tmp_path):
    def computed(run, factor):
        def fn():
            run.log(0, reward=factor * 1.0)
            return factor

        return run.result("x", fn)

    run = started(tmp_path)
    computed(run, 1)
    computed(run, 2)  # again in the same session, as after an edit
    assert run.metrics("x")["reward"].tolist() == [2.0]
    again = started(tmp_path)
    assert computed(again, 2) == 2 and again.computed == []
    assert again.metrics("x")["reward"].tolist() == [2.0]


# --- claims in the record

ROWS = """
[C1]
primary = true
paper = "It rises."
statement = "It rises here."
measure = "gain"
threshold = 0.1
direction = ">="
interval = "t"
scale = "microworld"
sham = "permuted"

[K]
check = true
statement = "One is one."

[U]
untestable = "no robot here"
paper = "Robots learn."
statement = "Robots learn."
"""


def test_results_hold_claims_checks_and_the_hash_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "FOLDER", tmp_path)
    rows = tmp_path / "98_trial.toml"
    rows.write_text(ROWS)
    run = started(tmp_path / "run", profile="default")
    with pytest.raises(ValueError, match="rows C1, K of the claims were neither judged"):
        run.finish()
    gains = [1.0, 1.1, 0.9, 1.0, 1.2]
    run.judge("C1", gains, sham=[0.0, 0.1, -0.1, 0.0, 0.05])
    with pytest.raises(AssertionError, match="check K failed: One is one"):
        run.check("K", False)
    run.check("K", True)
    run.finish()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [c["verdict"] for c in results["claims"]] == ["supported", "not testable at this scale"]
    assert results["checks"] == [{"id": "K", "statement": "One is one."}]
    assert results["claims_sha256"] == __import__("hashlib").sha256(ROWS.encode()).hexdigest()
    with pytest.raises(ValueError, match="has no row C9"):
        run.judge("C9", gains)
    own = started(tmp_path / "full", profile="full")
    own.check("K", False)  # told, not raised: days of work are not lost in their last cell
    own.finish()
    results = json.loads((tmp_path / "full" / "results.json").read_text())
    assert results["checks"] == [] and results["claims"][0]["verdict"] == "not measured"
    quick = started(tmp_path / "quick", profile="quick")
    assert quick.judge("C1", gains, sham=gains).verdict == "not judged"
    assert quick.judge("C1", gains * 2, sham=gains).n == 10  # a small world has its own seeds
    rows.write_text(ROWS.replace("microworld", "embedded"))
    study = started(tmp_path / "study", profile="study", n_seeds=5)
    with pytest.raises(ValueError, match="claim C1 has 10 values for 5 seeds"):
        study.judge("C1", gains * 2, sham=gains)  # steps or prompts are no seeds
    assert study.judge("C1", gains, sham=np.zeros(5)).verdict == "supported"


def test_one_number_out_of_a_row_is_stored_and_restored(tmp_path):
    """A single element may have any stride, and PyTorch calls it contiguous."""
    odd = torch.arange(10.0).view(2, 5)[:1, 0]
    assert odd.stride() == (5,)
    for computed in (["one"], []):
        run = started(tmp_path / "run")
        assert torch.equal(run.result("one", lambda: {"odd": odd})["odd"], torch.zeros(1))
        assert run.computed == computed


def test_equal_content_gives_equal_bytes_and_earlier_files_are_read(tmp_path):
    """Several entries of metadata would come in an order that changes from run to run."""
    content = {"a": torch.arange(3.0), "b": [1, "x", None], "c": {}}
    checkpoint.save(tmp_path / "new", content)
    with safetensors.safe_open(tmp_path / "new", "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    assert list(metadata) == ["json"]
    skeleton, checksum = metadata["json"].split("\n")
    earlier = safetensors.torch.save(tensors, {"json": skeleton, "checksum": checksum})
    (tmp_path / "old").write_bytes(earlier)
    for name in ("new", "old"):
        found = checkpoint.load(tmp_path / name)
        assert found["a"].equal(content["a"]) and (found["b"], found["c"]) == (content["b"], {})
    (tmp_path / "old").write_bytes(earlier.replace(checksum.encode(), b"0" * len(checksum)))
    with pytest.raises(checkpoint.Damaged):
        checkpoint.load(tmp_path / "old")
