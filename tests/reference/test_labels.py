"""UNets that take the pooled text as their label, in diffusers: the embedded model and a student of it, converted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison import assert_close
from safetensors.torch import load_file

import minisd
from minisd import store, surgery
from minisd.config import SDXL
from minisd.errors import BAD_FILE, USAGE
from weights_convert import configs
from weights_convert.__main__ import main
from weights_convert.sources import open_model
from weights_convert.tables import unet as unet_table

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")

PROMPT, TOLERANCE = "a red apple, 3d", 1e-5


@pytest.fixture(scope="module", params=["whole", "midless"])
def converted(request, tmp_path_factory):
    """Ours, the native folder it lies in, and diffusers' folder made of that."""
    root: Path = tmp_path_factory.mktemp(request.param)
    sd = minisd.load("emoji", device="cpu", dtype="float32")
    if request.param == "midless":
        student = surgery.transplant(sd.unet, surgery.student(sd.cfg.unet, ["midless"])).requires_grad_(False)
        sd = replace(sd, cfg=replace(sd.cfg, unet=student.cfg), unet=student)
    parts = {"unet": sd.unet, "vae": sd.vae, "text": sd.text[0]}
    store.save(root / "ours", replace(sd.cfg, vision=None), parts, torch.float32)
    assert main([str(root / "ours"), str(root / "theirs"), "--to", "diffusers"]) == 0
    return sd, root / "ours", root / "theirs"


@pytest.fixture(scope="module")
def unet(converted):
    """diffusers' network, of which no key is missing and none is too many."""
    found, info = diffusers.UNet2DConditionModel.from_pretrained(converted[2] / "unet", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found


def test_there_and_back_every_file_is_the_same(converted, tmp_path):
    sd, ours, theirs = converted
    assert main([str(theirs), str(tmp_path / "back"), "--to", "native"]) == 0
    for name in ("unet", "vae", "text"):
        one, back = ((folder / f"{name}.safetensors") for folder in (ours, tmp_path / "back"))
        assert load_file(one).keys() == load_file(back).keys()
        assert all(tensor.numpy().tobytes() == load_file(back)[key].numpy().tobytes()
                   for key, tensor in load_file(one).items())
    assert open_model(tmp_path / "back").cfg == replace(sd.cfg, vision=None)


def test_theirs_is_written_the_same_again(converted, tmp_path):
    """native -> diffusers -> native -> diffusers: the files are equal to the byte."""
    _, _, theirs = converted
    assert main([str(theirs), str(tmp_path / "back"), "--to", "native"]) == 0
    assert main([str(tmp_path / "back"), str(tmp_path / "again"), "--to", "diffusers"]) == 0
    names = [path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()]
    for name in names:
        one, other = ((folder / name) for folder in (theirs, tmp_path / "again"))
        if name.suffix == ".safetensors":             # but for what the header says of the source
            assert all(torch.equal(tensor, load_file(other)[key]) for key, tensor in load_file(one).items())
        else:
            assert one.read_bytes() == other.read_bytes(), name


def test_the_answer_is_the_same(converted, unet, measured):
    """The pooled text is what diffusers calls the class; and it matters."""
    sd, gen = converted[0], torch.Generator().manual_seed(0)
    x, t, told = torch.randn(2, 4, 16, 16, generator=gen), torch.tensor([3, 700]), sd.encode([PROMPT, ""])
    with torch.inference_mode():
        ours = sd.unet(x, t, told.context, told.label)
        theirs = unet(x, t, told.context, class_labels=told.label).sample
        other = unet(x, t, told.context, class_labels=told.label.flip(0)).sample
    measured("label: unet", assert_close("answer", ours, theirs, TOLERANCE))
    assert (other - theirs).abs().max() > 0.01


@torch.inference_mode()
def test_a_whole_walk_with_their_scheduler_is_ours(converted, unet, measured):
    """What the README shows to whoever draws with diffusers: guidance 3, eight steps of DDIM."""
    sd, last = converted[0], []
    drawing = sd.drawing(PROMPT, "", steps=8, cfg=3.0, sampler="ddim", seed=3)
    sd.draw([drawing], lambda x, s: last.append(x / s.next.scale) or x)

    scheduler = diffusers.DDIMScheduler.from_pretrained(converted[2] / "scheduler")
    scheduler.set_timesteps(8)
    told = sd.encode(["", PROMPT])
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    for t in scheduler.timesteps:
        without, wanted = unet(torch.cat([x, x]), t, told.context, class_labels=told.label).sample.chunk(2)
        x = scheduler.step(without + 3.0 * (wanted - without), t, x).prev_sample
    measured("label: walk", assert_close("latents", last[-1], x, TOLERANCE))


def test_their_pipeline_says_what_it_lacks(converted):
    """It loads, and asks for the class instead of drawing without one."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(converted[2])
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        pipe(PROMPT, num_inference_steps=1, height=128, width=128)


def test_it_is_said_and_a_single_file_is_refused(converted, tmp_path, capsys):
    assert main([str(converted[1]), str(tmp_path / "theirs"), "--to", "diffusers"]) == 0
    assert "StableDiffusionPipeline does not hand over" in capsys.readouterr().out
    assert main([str(converted[1]), str(tmp_path / "one.safetensors")]) == USAGE
    assert "a single file has no place" in capsys.readouterr().err


def test_a_part_alone_and_its_parity(converted, tmp_path, capsys):
    """The UNet's folder alone is known by its keys, and every layer of it computes as diffusers' does."""
    sd, _, theirs = converted
    assert open_model(theirs / "unet").cfg.pooled_label and open_model(theirs / "unet").cfg.unet == sd.cfg.unet
    assert main(["parity", str(theirs / "unet"), "diffusers"]) == 0
    assert "label.in_proj" in capsys.readouterr().out


@pytest.mark.parametrize("change, words", [
    ({"class_embed_type": "simple_projection"}, "class_embed_type 'simple_projection'"),
    ({"class_embeddings_concat": True}, "class_embed_type 'projection'"),
])
def test_other_kinds_of_classes_are_refused(converted, tmp_path, capsys, change, words):
    shutil.copytree(converted[2] / "unet", tmp_path / "unet")
    told = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps(told | change))
    assert main([str(tmp_path / "unet"), str(tmp_path / "out")]) == BAD_FILE
    assert words in capsys.readouterr().err


def test_sdxls_label_stays_what_it_is():
    """Sizes beside the pooled text: its config makes the network whose keys its table has; no tensor is made."""
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(configs.unet_json(SDXL, 128))
    keys = {name for row in unet_table.rows(SDXL, "diffusers") for name in row.theirs}
    assert theirs.state_dict().keys() == keys and theirs.add_embedding.linear_1.in_features == SDXL.label_dim
    assert theirs.class_embedding is None and theirs.config.addition_time_embed_dim == 256
