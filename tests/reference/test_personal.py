"""What is trained here is drawn with by diffusers, and what PEFT has trained is drawn with by us: the latents agree."""

import os

import pytest
import torch
from comparison import assert_close, random_model
from PIL import Image

import minisd
from minisd.adapters import add_lora
from minisd.clip import CLIPText
from minisd.schema import read
from minisd.train.config import Recipe
from minisd.train.stages import train
from minisd.train.tasks import tuned
from minisd.unet import UNet
from minisd.vae import VAE
from minisd.words import add_embedding
from weights_convert import vocabulary

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
peft = pytest.importorskip("peft", reason="compares with peft: pip install minisd[reference]")
from families import FAMILIES  # noqa: E402
from reference.peers import text_like, unet_like, vae_like  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

TOLERANCE = 1e-5
CFG = FAMILIES["sd15"]
TRAIN = {"steps": 3, "batch": 2, "lr": 1e-2, "warmup": 0, "dtype": "fp32", "ema": 0.0}
STAGES = [
    {"name": "lora", "train": TRAIN, "data": {"size": 64, "alias": "sks"},
     "lora": {"rank": 3, "alpha": 2.0, "targets": ["attention", "feed-forward", "conv"], "text_rate": 0.5,
              "text_targets": ["attention", "feed-forward"]}},
    {"name": "inversion", "train": TRAIN, "data": {"size": 64, "captions": ["a photo of <sks>"]},
     "textual_inversion": {"word": "<sks>", "vectors": 2, "start": "apple"}},
]
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of theirs with random weights, and four pictures."""
    root, text = tmp_path_factory.mktemp("pipeline"), CFG.text[0]
    for file, content in vocabulary.files(text).items():
        (root / file).write_text(content, encoding="utf-8")
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                        clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    diffusers.StableDiffusionPipeline(
        vae=vae_like(random_model(VAE, CFG.vae)), unet=unet_like(random_model(UNet, CFG.unet)),
        text_encoder=text_like(random_model(CLIPText, text)), tokenizer=CLIPTokenizer.from_pretrained(root),
        scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False).save_pretrained(root / "model")
    (root / "data").mkdir()
    for n, colour in enumerate(("red", "green", "blue", "black")):
        Image.new("RGB", (70, 64), colour).save(root / "data" / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder):
    """The folder of a LoRA and a word that we have trained."""
    recipe = read(Recipe, {"name": "tiny", "base": str(folder / "model"), "stages": STAGES}, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "MEASURED", 8)
        train(recipe, [stage["name"] for stage in STAGES], folder / "data", folder / "runs", "auto")
    return folder / "runs"


@pytest.fixture
def pipe(folder):
    return diffusers.StableDiffusionPipeline.from_pretrained(folder / "model")


@pytest.fixture
def sd(folder):
    return minisd.load(folder / "model", device="cpu", dtype="float32")


def ours(sd, prompt):
    last = []
    drawing = sd.drawing(prompt, "blue", steps=3, cfg=4.0, sampler="ddim", seed=3, size=(64, 64))
    sd.draw([drawing], lambda x, s: last.append(x / s.next.scale) or x)
    return last[-1]


def theirs(pipe, prompt):
    return pipe(prompt, negative_prompt="blue", num_inference_steps=3, guidance_scale=4.0, height=64, width=64,
                generator=torch.Generator().manual_seed(3), output_type="latent").images


def test_a_lora_of_ours_is_drawn_with_by_diffusers(trained, sd, pipe, measured):
    prompt = "sks, a red apple"
    before = ours(sd, prompt)
    add_lora(sd, trained / "lora" / "lora.safetensors")
    pipe.load_lora_weights(trained / "lora", weight_name="lora.safetensors")
    found = ours(sd, prompt)
    measured("LoRA trained by us, in diffusers", assert_close("latents", theirs(pipe, prompt), found, TOLERANCE))
    assert (before - found).abs().max() > 1e-3


def test_a_word_of_ours_is_drawn_with_by_diffusers(trained, sd, pipe, measured):
    prompt = "a <sks> on the moon"
    before, file = ours(sd, prompt), trained / "inversion" / "sks.safetensors"
    assert add_embedding(sd, file) == "<sks>"
    pipe.load_textual_inversion(str(file.parent), weight_name=file.name)
    found = ours(sd, prompt)
    assert "<sks>_1" in pipe.tokenizer.tokenize(pipe.maybe_convert_prompt(prompt, pipe.tokenizer))
    measured("word trained by us, in diffusers", assert_close("latents", theirs(pipe, prompt), found, TOLERANCE))
    assert (before - found).abs().max() > 1e-3


def test_a_lora_that_peft_has_trained_is_drawn_with_by_us(sd, pipe, tmp_path, measured):
    """Three steps of their own training on noise, UNet and text encoder."""
    prompt, generator = "a red apple", torch.Generator().manual_seed(5)
    pipe.unet.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe.unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        pipe.text_encoder.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"]))
    learning = [p for model in (pipe.unet, pipe.text_encoder) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    ids = pipe.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    for _ in range(3):
        x, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
        out = pipe.unet(x + noise, 300, pipe.text_encoder(ids)[0]).sample
        (out - noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    layers = [peft.get_peft_model_state_dict(model) for model in (pipe.unet, pipe.text_encoder)]
    metadata = [model.peft_config["default"].to_dict() for model in (pipe.unet, pipe.text_encoder)]
    listed = [{key: sorted(value) if isinstance(value, set) else value for key, value in told.items()}
              for told in metadata]
    pipe.save_lora_weights(tmp_path, *layers, unet_lora_adapter_metadata=listed[0],
                           text_encoder_lora_adapter_metadata=listed[1])
    before = ours(sd, prompt)
    add_lora(sd, tmp_path / "pytorch_lora_weights.safetensors")
    found = ours(sd, prompt)
    measured("LoRA trained by peft, in ours", assert_close("latents", found, theirs(pipe, prompt), TOLERANCE))
    assert (before - found).abs().max() > 1e-3
