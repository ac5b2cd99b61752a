"""data/results/bench.md from data/results/bench.json: tables, what was measured, aims hit and missed."""

AIM_WINDOW, AIM_TOKENS, AIM_STUDY = 0.3, 0.5, 1.8
FAMILIES = {
    "flow": "the embedded flow model (class of Stable Diffusion 3; SDE of noise level 0.7)",
    "epsilon": "the embedded noise-prediction model (class of PixArt; DDIM with eta 1)",
}
COSTS = {
    "step": "One sampling step with its log-probability on 32 latents of 4 x 8 x 8",
    "rollout": "A rollout of ten steps of eight pictures",
    "iteration": "A rollout, its decoding and one update",
}


def table(heads: list[str], rows: list[list]) -> list[str]:
    """A markdown table and an empty line."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(str, row)) + " |" for row in lines] + [""]


def verdict(ratio: float, aim: float, more: bool = False) -> str:
    """The aim in words, hit or missed."""
    hit = ratio >= aim if more else ratio <= aim
    return f"aim {'at least' if more else 'at most'} {aim}: **{'hit' if hit else 'missed'}**"


def peer_of(found: dict) -> str:
    """The peer's name in a family, "" where it did not run."""
    return next((name for name in found["arms"] if not name.startswith("ours")), "")


def window_line(name: str, found: dict) -> str:
    """What the window took of the peer's time, and whether every run arrived."""
    own, peer = found["arms"]["ours, window"], peer_of(found)
    runs = len(own["runs"])
    low, high = own["range"]
    arrived = f"the window reached the target in {own['reached']} of {runs} runs"
    late = found["arms"][peer]["reached"]
    arrived += f", {peer} in {late}" + (
        "; where it did not, its time is that of all rounds, so that the ratio is an upper bound"
        if late < runs
        else ""
    )
    return (
        f"- Windowed GRPO over {peer}, {name}: {own['ratio']} of the CPU seconds ({low} to {high}); "
        f"{verdict(own['ratio'], AIM_WINDOW) if own['reached'] == runs else 'aim **missed**'} "
        f"({arrived})."
    )


def aims(result: dict) -> list[str]:
    """One line for each aim that was measured."""
    lines = [
        window_line(name, result[name])
        for name in FAMILIES
        if name in result and peer_of(result[name])
    ]
    for words, found in result.get("tokens", {}).items():
        for name, peer in (("ours, sample", "transformers' generate"), ("ours, a step", "TRL's")):
            ratio = found[name]["ratio"]
            what = "a step of GRPO" if "step" in name else "generation"
            lines.append(
                f"- Tokens, vocabulary of {words}, {what}: {ratio} of the CPU seconds of {peer}; "
                f"{verdict(ratio, AIM_TOKENS)}."
            )
    for steps, found in result.get("study", {}).items():
        lines.append(
            f"- Two processes over one, the template's study with {steps} updates "
            f"({found['one process']:.0f} s): {found['ratio']} times as fast; "
            f"{verdict(found['ratio'], AIM_STUDY, more=True)}."
        )
    return lines


def family(name: str, found: dict) -> list[str]:
    """Time to a reward of one family, and the grid behind it."""
    runs = len(next(iter(found["arms"].values()))["runs"])
    first = peer_of(found) or next(iter(found["arms"]))
    lines = [
        f"## Time to a reward: {FAMILIES[name]}",
        "",
        f"CPU seconds and pictures until the mean learned look of fixed noise and prompts, drawn "
        f"without noise and not counted, has risen from {found['start']} to {found['target']}: "
        f"medians over {runs} seeds, ratios to {first} on the same seed. All arms share network, "
        f"LoRA of rank 8, reward, prompts, {found['pictures a round']} pictures a round, AdamW, no "
        "guidance and at most 8 rounds. The exam's sampler, five deterministic steps, is neither the "
        "peers' nor the window's. The window is often there after one round, the least that is told.",
        "",
    ]
    rows = []
    for arm, own in found["arms"].items():
        low, high = own["range"]
        pictures = own["rounds"] * found["pictures a round"]
        rows.append(
            [arm, own["rate"], own["updates"], f"{own['reached']} of {runs}", own["seconds"],
             own["seconds a round"], f"{pictures:g}", f"{own['ratio']} ({low} to {high})"]
        )  # fmt: skip
    heads = [
        "arm",
        "rate",
        "updates a round",
        "reached",
        "CPU s",
        "CPU s a round",
        "pictures",
        "ratio",
    ]
    lines += table(heads, rows)
    if peer := peer_of(found):
        lines += [
            f"{peer} and ours over all steps make the same update (tests/test_bench.py), so that "
            "they take one setting; the window trains the first two of ten steps and ends in two "
            "deterministic ones.",
            "",
        ]
    highest = max(trial["plan"][0] for trial in found["grid"])
    edge = [arm for arm, own in found["arms"].items() if own["rate"] == highest]
    if edge:
        lines += [
            f"At the highest rate of the grid, so that a higher one may be faster still: {', '.join(edge)}.",
            "",
        ]
    lines += ["The grid, on a seed of its own: CPU seconds to the target, or the last exam.", ""]
    rows = []
    for trial in found["grid"]:
        end, (rate, updates) = trial["exams"][-1], trial["plan"]
        said = f"{trial['seconds']} s" if end >= found["target"] else f"not reached, {end}"
        rows.append([trial["arm"], rate, updates, said])
    return lines + table(["arm", "rate", "updates a round", "result"], rows)


def tokens(result: dict) -> list[str]:
    """Generation and one step of GRPO."""
    lines = [
        "## Tokens",
        "",
        "Eight prompts of 32 tokens, eight answers of up to 64 tokens each, by a GPT-2 of 4 layers "
        "and width 256 with random weights; a step is generation, reward and one update. CPU "
        "seconds, medians; ratios are to transformers' generate, of steps to TRL's.",
        "",
    ]
    heads = ["vocabulary", "what", "CPU s", "ratio"]
    rows = [
        [words, name, own["seconds"], own["ratio"]]
        for words, found in result.items()
        for name, own in found.items()
    ]
    return [
        *lines,
        *table(heads, rows),
        "Ours reads equal prompts once, keeps its cache where it is and, like TRL in a single "
        "update, stores no log-probs: on own draws every ratio is 1. The passes of the network cost "
        "both sides the same, and are nearly everything where the vocabulary is small.",
        "",
    ]


def studies(result: dict) -> list[str]:
    """One process and two."""
    rows = [
        [steps, own["one process"], own["two processes"], own["ratio"]]
        for steps, own in result.items()
    ]
    return [
        "## A study by two processes",
        "",
        "Wall seconds of `python -m rlgenkit run _template --profile study -p steps N` with `--jobs 1` "
        "and `--jobs 2`, in turn. Each process starts a kernel and imports; with two, one more run "
        "over all seeds assembles the notebook. A short study is mostly that.",
        "",
        *table(["updates", "`--jobs 1`", "`--jobs 2`", "times as fast"], rows),
    ]


def costs(result: dict) -> list[str]:
    """The tables of speed per call."""
    lines = ["## Cost per call", ""]
    for name, found in result["tables"].items():
        lines += [f"{COSTS[name]}: medians of {result['repeats']}, ratios to the first row.", ""]
        rows = [[arm, f"{own['microseconds']:,.0f}", own["ratio"]] for arm, own in found.items()]
        lines += table(["what", "CPU microseconds", "ratio"], rows)
    return lines


def page(result: dict) -> str:
    """The whole page; a part that was not measured has no section."""
    lines = [
        "# What it costs, and how soon it works",
        "",
        "<!-- generated by `python -m rlgenkit report` from bench.json; edit neither -->",
        "",
        f"Measured by `python -m rlgenkit bench --peer FLOW_GRPO --ddpo-peer DDPO_PYTORCH` in one "
        f"process on one thread, all rivals in turn; {result.get('hardware', 'this machine')}. The "
        "peers' own functions come from local checkouts; their loops are followed step by step in "
        "`ci/bench_reward.py`.",
        "",
        "Aims, hit and missed:",
        "",
        *aims(result),
        "",
    ]
    for name in FAMILIES:
        if name in result:
            lines += family(name, result[name])
    if "tokens" in result:
        lines += tokens(result["tokens"])
    if "study" in result:
        lines += studies(result["study"])
    if "tables" in result:
        lines += costs(result)
    return "\n".join(lines).rstrip() + "\n"
