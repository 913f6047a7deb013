"""CLIP score and the judge's features."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minisd.errors import MinisdError
from minisd.evaluate.clip_score import clip_score, cosine, load_judge


def test_the_score_is_the_cosine_weighted_and_never_negative():
    pictures, captions = torch.eye(3)[:2], torch.tensor([[0.6, 0.8, 0.0], [0.0, -1.0, 0.0]])
    assert cosine(pictures, captions).tolist() == pytest.approx([0.6, -1.0])
    assert clip_score(cosine(pictures, captions)).tolist() == pytest.approx([1.5, 0.0])


def test_features_are_of_unit_length_and_do_not_depend_on_the_others(model: Path):
    judge = load_judge(model)
    x = torch.rand(70, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    words = [f"{n} apples" for n in range(70)]
    pairs = (judge.pictures(x), judge.pictures(x[69:])), (judge.captions(words), judge.captions(words[69:]))
    for features, one in pairs:
        assert features.shape == (70, 16)
        assert torch.allclose(features.norm(dim=1), torch.ones(70))
        assert torch.allclose(features[69:], one, atol=1e-5)


def test_pictures_of_another_size_are_brought_to_the_towers(model: Path):
    judge = load_judge(model)
    x = torch.zeros(1, 3, 64, 64)
    x[:, 0] = 0.5                                 # one colour all over is the same at every size
    large = x.repeat(1, 1, 2, 2)
    assert torch.allclose(judge.pictures(x), judge.pictures(large), atol=1e-5)


def test_a_long_caption_is_cut(model: Path):
    judge = load_judge(model)
    words = "apple " * 200
    assert torch.equal(judge.captions([words]), judge.captions([words + "pear"]))


def test_a_model_without_vision_cannot_judge(model: Path, tmp_path: Path):
    shutil.copytree(model, tmp_path / "blind")
    (tmp_path / "blind" / "vision.safetensors").unlink()
    with pytest.raises(MinisdError, match=r"no vision tower\n.*--judge"):
        load_judge(tmp_path / "blind")


def test_towers_of_different_widths_do_not_belong_together(model: Path, tmp_path: Path):
    shutil.copytree(model, tmp_path / "odd")
    config = tmp_path / "odd" / "config.json"
    config.write_text(config.read_text().replace('"projection_dim": 16', '"projection_dim": null', 1))
    text = tmp_path / "odd" / "text.safetensors"
    save_file({key: value for key, value in load_file(text).items() if key != "projection.weight"}, text)
    with pytest.raises(MinisdError, match="32 features, pictures to 16"):
        load_judge(tmp_path / "odd")


def test_the_hash_is_that_of_the_towers(model: Path, tmp_path: Path):
    shutil.copytree(model, tmp_path / "copy")
    assert load_judge(tmp_path / "copy").sha256 == load_judge(model).sha256
    shutil.copy(model / "vae.safetensors", tmp_path / "copy" / "unet.safetensors")
    assert load_judge(tmp_path / "copy").sha256 == load_judge(model).sha256
