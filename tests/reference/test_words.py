"""Embeddings of other programs beside diffusers: the same files, and the text states and latents agree."""

import os

import pytest
import torch
from comparison import assert_close, random_model
from safetensors.torch import save_file

import minisd
from minisd.clip import CLIPText
from minisd.unet import UNet
from minisd.vae import VAE
from minisd.words import add_embedding
from weights_convert import vocabulary

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
from families import FAMILIES  # noqa: E402
from reference.peers import text_like, unet_like, vae_like  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

TOLERANCE = 1e-5
CFG = FAMILIES["sd15"]
os.environ["HF_HUB_OFFLINE"] = "1"


def vectors(count):
    return torch.randn(count, CFG.text[0].width, generator=torch.Generator().manual_seed(count))


def a1111(path):
    """The .pt of its trainer; diffusers takes the word from inside, A1111 and we from the file's name."""
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(3)}, "name": "my-style", "step": 9},
               path / "my-style.pt")
    return "my-style.pt", None, "my-style"


def nameless(path):
    save_file({"emb_params": vectors(2)}, path / "bad-hands.safetensors")
    return "bad-hands.safetensors", "bad-hands", "bad-hands"


def concept(path):
    torch.save({"<toy>": vectors(1)[0]}, path / "learned_embeds.bin")
    return "learned_embeds.bin", None, "<toy>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of theirs with random weights."""
    root = tmp_path_factory.mktemp("words")
    for file, content in vocabulary.files(CFG.text[0]).items():
        (root / file).write_text(content, encoding="utf-8")
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                        clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    diffusers.StableDiffusionPipeline(
        vae=vae_like(random_model(VAE, CFG.vae)), unet=unet_like(random_model(UNet, CFG.unet)),
        text_encoder=text_like(random_model(CLIPText, CFG.text[0])), tokenizer=CLIPTokenizer.from_pretrained(root),
        scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False).save_pretrained(root / "model")
    return root / "model"


@pytest.mark.parametrize("make", [a1111, nameless, concept])
def test_the_same_file_says_the_same(folder, tmp_path, make, measured):
    name, token, word = make(tmp_path)
    sd = minisd.load(folder, device="cpu", dtype="float32")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    prompt = f"a {word} on the moon, in the style of {word}"
    before = sd.encode([prompt]).context
    assert add_embedding(sd, tmp_path / name) == word
    pipe.load_textual_inversion(str(tmp_path), weight_name=name, token=token)
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        found = sd.encode([prompt]).context
    measured(f"text states, a word of {name}", assert_close("states", found, expected, TOLERANCE))
    assert (before - found).abs().max() > 1e-2


def test_of_another_models_width_both_refuse(folder, tmp_path):
    torch.save({"<toy>": torch.ones(1024)}, tmp_path / "sd2.bin")
    sd = minisd.load(folder, device="cpu", dtype="float32")
    with pytest.raises(minisd.MinisdError, match="made for another model"):
        add_embedding(sd, tmp_path / "sd2.bin")
    with pytest.raises(ValueError, match="incorrect shape"):
        diffusers.StableDiffusionPipeline.from_pretrained(folder).load_textual_inversion(
            str(tmp_path), weight_name="sd2.bin")
