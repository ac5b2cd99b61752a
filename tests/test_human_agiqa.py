"""People's two ratings of generated images: what is committed, and how it is made."""

import torch

from rlgenkit import worlds
from data.human.agiqa3k.make import make_agiqa


def test_committed_ratings_are_whole():
    data = worlds.load_agiqa()
    assert data.mean.shape == data.spread.shape == (2982, 2) and data.spread.min() >= 0
    sizes = data.prompt.bincount()
    assert len(sizes) == 300 and sizes.max() == 10 and sizes.min() == 7
    pairs = data.prompt * 10 + data.generator
    assert len(pairs.unique()) == 2982 and len(data.generators) == 10  # one image of each
    worst = data.generators.index("AttnGAN_normal")
    assert data.mean[data.generator == worst, 0].mean() < data.mean[:, 0].mean() - 0.5


def test_ratings_are_made_from_the_origins_file(tmp_path):
    (tmp_path / "data.csv").write_text(
        "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"
        'b_x_001.jpg,"a cat, sitting",,,,1.5,0.1,2.5,0.2\na_y_000.jpg,a dog,,,,3,0.3,4,0.4\n'
    )
    (tmp_path / "LICENSE").write_text("MIT")
    make_agiqa(tmp_path, tmp_path / "made")
    data = worlds.load_agiqa(tmp_path / "made")
    assert data.generators == ("a_y", "b_x") and data.prompt.tolist() == [0, 1]
    assert torch.equal(data.mean, torch.tensor([[3.0, 4.0], [1.5, 2.5]]))
    assert torch.allclose(data.spread, torch.tensor([[0.3, 0.4], [0.1, 0.2]]))
    assert (tmp_path / "made" / "LICENSE").read_text() == "MIT"
