"""A person's own folder instead of a committed pack: every damage is one sentence, or harmless."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save

from rlgenkit.worlds import gridworld, human
from rlgenkit.worlds.human import AGIQA, AVA, load_agiqa, load_ava
from rlgenkit.worlds.dsg import DSG, load_dsg
from rlgenkit.worlds.gsm8k import GSM8K, load_gsm8k
from rlgenkit.worlds.llmbar import LLMBAR, load_llmbar
from rlgenkit.worlds.opinpref import OPINPREF, load_opinpref, load_preference_pairs
from rlgenkit.worlds.pandalm import PANDALM, load_pandalm
from rlgenkit.worlds.pccd import PCCD, load_pccd
from rlgenkit.worlds.reader import READER, load_reader
from rlgenkit.worlds.unigenbench import UNIGENBENCH, load_unigenbench
from tests.notebook_code import definitions

PAIRS = [{"chosen": "a", "rejected": "b"}, {"chosen": "c\u2028d", "rejected": "e"}]
# pack -> loader of a folder, its file, the committed folder that lends a few rows, columns that
# may be empty
PACKS = {
    "agiqa": (load_agiqa, "ratings.csv", AGIQA, ()),
    "ava": (load_ava, "votes.csv", AVA, ()),
    "captions": (
        lambda folder: human.load_captions(514, folder),
        "514.csv",
        human.CAPTIONS,
        ("adaptive_funny",),
    ),
    "geneval": (
        human.load_geneval,
        "ratings.csv",
        human.GENEVAL,
        ("fit", "realism_0", "realism_1"),
    ),
    "geneval prompts": (human.load_geneval, "prompts.csv", human.GENEVAL, ()),
    "vader": (human.load_vader, "sessions.csv", human.VADER, ()),
    "reviews": (definitions("30").load_sentences, "reviews.csv", human.VADER, ()),
    "gsm8k": (load_gsm8k, "solutions.jsonl", GSM8K, ()),
    "tifa": (
        definitions("34").load_tifa,
        "ratings.csv",
        human.DATA / "human" / "tifa",
        ("pair_1", "rater_5", "dsg_mplug"),
    ),
    "dsg": (load_dsg, "questions.csv", DSG, ()),
    "dsg prompts": (load_dsg, "prompts.csv", DSG, ()),
    "dsg ratings": (load_dsg, "ratings.csv", DSG, ("rater_1",)),
    "llmbar": (load_llmbar, "pairs.jsonl", LLMBAR, ()),
    "opinpref": (load_opinpref, "pairs.jsonl", OPINPREF, ()),
    "pandalm": (load_pandalm, "pairs.jsonl", PANDALM, ()),
    "pccd": (
        load_pccd,
        "critiques.csv",
        PCCD,
        ("score_focus", "vader_composition", "neutral"),
    ),
    "unigenbench": (load_unigenbench, "prompts.jsonl", UNIGENBENCH, ()),
    "pairs": (lambda folder: load_preference_pairs(folder / "pairs.jsonl"), "pairs.jsonl", "", ()),
}
NUMBERS = {
    "agiqa": "prompt quality quality_std fit fit_std",
    "ava": "image 1 10",
    "captions": "unfunny somewhat_funny funny adaptive_funny",
    "geneval": "model prompt sample rater fit realism_0 realism_1",
    "geneval prompts": "prompt",
    "vader": "batch ratings",
    "reviews": "item",
    "dsg": "prompt question pali mplug instructblip",
    "dsg prompts": "prompt",
    "dsg ratings": "prompt generator rater_1",
    "llmbar": "subset right verdicts",
    "opinpref": "aspects choice annotator recipes split",
    "gsm8k": "right",
    "pandalm": "labels generators",
    "pccd": "split reviewer overall score_focus vader_composition words_use_of_camera neutral",
    "tifa": "prompt pair_1 rater_5 clipscore dsg_mplug",
}
TEXTS = {
    "tifa": "model",
    "agiqa": "generator",
    "captions": "caption",
    "geneval prompts": "tag",
    "reviews": "words",
    "gsm8k": "question answer solutions",
    "dsg": "text",
    "dsg prompts": "text",
    "llmbar": "instruction first second criteria",
    "opinpref": "first second",
    "pccd": "category",
    "unigenbench": "prompt theme subject points",
    "pairs": "chosen rejected",
}
EACH = [(pack, name) for pack, names in NUMBERS.items() for name in names.split()]
EACH_TEXT = [(pack, name) for pack, names in TEXTS.items() for name in names.split()]


def lines_of(path, count):
    """The first rows of a committed file, whatever line ends its cells hold."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n")[:count] if line]
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [row for _, row in zip(range(count), rows)]


def write(path, rows):
    if path.suffix == ".jsonl":
        made = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        file = io.StringIO()
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        made = file.getvalue()
    path.write_text(made, encoding="utf-8")
    return path


def own(pack, folder):
    """(loader, file, rows) of a small good folder of this pack's form."""
    load, name, committed, _ = PACKS[pack]
    if not committed:
        return load, write(folder / name, PAIRS), PAIRS
    for path in committed.glob("[!m]*.[cj]s*"):
        write(folder / path.name, lines_of(path, 600 if path.stem == "prompts" else 15))
    return load, folder / name, lines_of(folder / name, 600)


def refused(load, folder, *words):
    with pytest.raises(ValueError) as caught:
        load(folder)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400 and type(caught.value) is ValueError
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize("pack", PACKS)
def test_harmless_variants_are_read_alike(pack, tmp_path):
    load, path, rows = own(pack, tmp_path)
    good = str(load(tmp_path))
    text = path.read_bytes()
    for variant in (b"\xef\xbb\xbf" + text, text.replace(b"\n", b"\r\n"), text + b"\n\n"):
        path.write_bytes(variant)  # a byte order mark, line ends of Windows, blank lines
        assert str(load(tmp_path)) == good


@pytest.mark.parametrize("pack", PACKS)
def test_damaged_files_are_named_in_one_sentence(pack, tmp_path):
    load, path, rows = own(pack, tmp_path)
    text = path.read_text(encoding="utf-8")
    for content in ("", "\n", "{}\n", "[1]\n", "no json, no table\n", "[" * 100_000, "\0"):
        path.write_text(content, encoding="utf-8")
        refused(load, tmp_path, path.name)
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes((text + "\xe9\n").encode(encoding, errors="replace"))
        refused(load, tmp_path, path.name, "UTF-8")
    path.unlink()
    refused(load, tmp_path, path.name, "is missing")
    path.mkdir()
    refused(load, tmp_path, path.name, "is missing")


@pytest.mark.parametrize("pack", [p for p in PACKS if PACKS[p][1].endswith("csv")])
def test_torn_tables_are_named_with_their_line(pack, tmp_path):
    load, path, rows = own(pack, tmp_path)
    header, first, rest = path.read_text(encoding="utf-8").split("\n", 2)
    names = header.split(",")
    for what, content in {
        "rows": header + "\n",
        "missing": f"{header}\n{first.split(',')[0]}\n{rest}",  # a short row
        "more values": f"{header}\n{first},1\n{rest}",
        "twice": f"{header},{names[0]}\n{first},1\n",
        "line 2": f'{header}\n"{first}\n{rest}',  # a quote that is never closed
        "line": f'{header}\n{first}\n{rest}{first.rsplit(",", 1)[0]},"a',  # in the last cell
        f"column {names[1]}": f"{names[0]},x\n{first.split(',')[0]},1\n",
    }.items():
        path.write_text(content, encoding="utf-8")
        refused(load, tmp_path, path.name, *([what] if what[:4] != "line" else []))


@pytest.mark.parametrize("pack, column", EACH + EACH_TEXT)
def test_a_bad_cell_is_named_with_file_line_and_column(pack, column, tmp_path):
    load, path, rows = own(pack, tmp_path)
    bad = ["", " "]
    if (pack, column) in EACH:
        bad += ["x", "nan", "inf", "-inf", "1e999", "-5", str(10**10), "9" * 6000]
        bad = bad[:0] + bad[2:] if column in PACKS[pack][3] else bad
        if isinstance(good := rows[1][column], str):
            bad += [f"{good} {good}"]
    if path.suffix == ".jsonl":
        bad += [None, [], {}, float("nan"), 0.5, 7 if column != "aspects" else [[7] * 7] * 2]
        bad += [[[float("nan")] * 7] * 2] * (column == "aspects")
    for value in bad:
        write(path, [rows[0], {**rows[1], column: value}, *rows[2:]])
        line = 2 if path.suffix == ".jsonl" else 3  # a table has a header
        refused(load, tmp_path, path.name, f"line {line}", f"column {column}")


def test_rows_that_do_not_fit_together_are_refused(tmp_path):
    def changed(pack, change, *words):
        folder = tmp_path / f"{pack}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        load, path, rows = own(pack, folder)
        write(path, change(rows))
        refused(load, folder, path.name, *words)

    changed("geneval", lambda rows: [*rows, rows[0]], "two rows of one rater")
    changed("geneval", lambda rows: [{**rows[0], "prompt": "4000"}], "column prompt")
    none = dict.fromkeys((f"adaptive_{vote}" for vote in human.VOTES), "")
    changed("captions", lambda rows: [rows[0], {**rows[1], **none}], "in every row or in none")
    changed("captions", lambda rows: [{**rows[0], **dict.fromkeys(human.VOTES, "0")}], "without")
    zero = dict.fromkeys(map(str, range(1, 11)), "0")
    changed("ava", lambda rows: [rows[0], {**rows[1], **zero}], "a vote in each row")
    changed("vader", lambda rows: rows[:1], "two sessions or more")
    changed("vader", lambda rows: [{**row, "batch": "1"} for row in rows], "from 0")
    changed("reviews", lambda rows: [{**rows[0], "item": 30}], "column item")
    changed("pairs", lambda rows: [rows[0], {"chosen": "a", "rejected": "a"}], "two different")
    twice = [*lines_of(DSG / "ratings.csv", 15), lines_of(DSG / "ratings.csv", 1)[0]]
    changed("dsg ratings", lambda rows: twice, "two rows for one image")
    changed("dsg prompts", lambda rows: [*rows, rows[0]], "two rows for one prompt")
    changed("dsg", lambda rows: [rows[1], rows[0], *rows[2:]], "in order from 1")
    for parents in ("2", "9", "99"):  # itself, and questions that its prompt has not
        other = {"parents": parents}
        changed("dsg", lambda rows: [rows[0], {**rows[1], **other}], "other questions of their")
    changed("dsg", lambda rows: [{**rows[0], "parents": "0"}], "line 2", "column parents")
    folder = tmp_path / "sides"
    folder.mkdir()
    load, path, rows = own("opinpref", folder)
    write(path, [{**row, "choice": 1} for row in rows])
    refused(load, folder, "same side")


@pytest.mark.parametrize(
    "pack, name, shape", [("opinpref", "summaries", (2, 4)), ("pccd", "critiques", (4,))]
)
def test_damaged_embeddings_are_refused(pack, name, shape, tmp_path):
    load, path, rows = own(pack, tmp_path)
    assert load(tmp_path).embeddings is None
    file = tmp_path / "embeddings.safetensors"
    good = torch.zeros(len(rows), *shape)
    file.write_bytes(save({name: good}))
    assert load(tmp_path).embeddings.shape == good.shape
    for content in (
        b"",
        save({name: good})[:-5],
        save({"others": good}),
        save({name: good[1:].clone()}),
        save({name: good[..., 0].clone()}),
        save({name: good + float("nan")}),
    ):
        file.write_bytes(content)
        refused(load, tmp_path, "embeddings.safetensors", f"{len(rows)}", name)


def test_a_changed_committed_file_is_refused(tmp_path, monkeypatch):
    """In a copy of data/ with its manifest: one digit more in a file is told with its repair."""
    folder = tmp_path / "data" / "human" / "agiqa3k"
    shutil.copytree(AGIQA, folder)
    shutil.copy(human.DATA / "manifest.json", tmp_path / "data")
    monkeypatch.setattr(human, "DATA", tmp_path / "data")
    assert len(load_agiqa(folder).prompt) == 2982
    path = folder / "ratings.csv"
    path.write_bytes(path.read_bytes() + b"0,x,1,1,1,1\n")
    refused(load_agiqa, folder, "git checkout -- data/human/agiqa3k/ratings.csv")
    path.unlink()
    refused(load_agiqa, folder, "is missing", "git checkout")


def test_a_damaged_truth_meter_is_refused(tmp_path, monkeypatch):
    """One flipped byte of the committed reader, and what is no reader in a person's own folder."""
    own_file, copied = (
        tmp_path / "own" / "model.safetensors",
        tmp_path / "data" / "models" / "reader",
    )
    shutil.copytree(READER, copied)
    own_file.parent.mkdir()
    good = (copied / "model.safetensors").read_bytes()
    for content in (b"", good[:-9], save({"other": torch.zeros(2)})):
        own_file.write_bytes(content)
        refused(load_reader, own_file.parent, "holds no weights of a reader")
    own_file.write_bytes(good)
    assert load_reader(own_file.parent).training is False
    shutil.copy(human.DATA / "manifest.json", tmp_path / "data")
    monkeypatch.setattr(human, "DATA", tmp_path / "data")
    load_reader(copied)
    (copied / "model.safetensors").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused(load_reader, copied, "git checkout -- data/models/reader/model.safetensors")


@pytest.mark.parametrize("name", ["segment_pairs", "Y"])
def test_damaged_arrays_of_people_are_refused(name, tmp_path):
    walks = np.array([[[[0, 0], [0, 1]], [[0, 1], [0, 1]]]] * 2, dtype=float)
    files = {
        key: tmp_path / f"Privileged-Control_full_filtered_{key}.npy"
        for key in ("segment_pairs", "Y")
    }
    board = gridworld.delivery_board()
    for content in (None, "nan", "inf", "texts", "objects", "cut", b"", b"PK\3\4", "half", 1e300):
        np.save(files["segment_pairs"], walks)
        np.save(files["Y"], np.array([0.0, 1.0]))
        gridworld.load_delivery_labels(tmp_path, board)
        good, path = np.load(files[name]), files[name]
        if content is None:
            path.unlink()
        elif content == "cut":
            path.write_bytes(path.read_bytes()[:-5])
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            kinds = {"texts": "x", "objects": None, "half": 0.25}
            np.save(
                path,
                np.full_like(good, kinds.get(content, content), object)
                if content == "objects"
                else np.full(good.shape, kinds.get(content, content)).astype(
                    str if content == "texts" else float
                ),
            )
        with pytest.raises(ValueError) as caught:
            gridworld.load_delivery_labels(tmp_path, board)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_texts_of_a_pack_arrive_as_they_are(tmp_path):
    """Markup in a pack is a text like any other; what shows it escapes it."""
    load, path, rows = own("captions", tmp_path)
    hostile = '<script>alert("1")</script>, <img src=x onerror=alert(1)> $x$ | `'
    write(path, [{**rows[0], "caption": hostile}, *rows[1:]])
    assert load(tmp_path).texts[0] == hostile
