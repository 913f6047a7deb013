"""LoRA files beside diffusers and PEFT: what one has written the other loads, and the latents agree."""

import os
from pathlib import Path

import pytest
import torch
from comparison import assert_close, random_model

import minisd
from minisd import attach
from minisd.adapters import add_lora, parts, taken
from minisd.clip import CLIPText
from minisd.unet import UNet
from minisd.vae import VAE
from weights_convert import vocabulary
from weights_convert.lora.write import write_adapter

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
peft = pytest.importorskip("peft", reason="compares with peft: pip install minisd[reference]")
from families import FAMILIES  # noqa: E402
from reference.peers import text_like, unet_like, vae_like  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

TOLERANCE = 1e-5
PROMPT, NEGATIVE = "a red apple on the moon", "blue"
CFG = FAMILIES["sd15"]
TARGETS = {"unet": ("*_attn.*", "*.ff.*", "*.proj_in", "*.proj_out"), "text": ("*.attn.*", "*.in_proj", "*.out_proj")}
THEIR_TARGETS = {"unet": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "conv2"],
                 "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]}
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def pipe(tmp_path) -> diffusers.StableDiffusionPipeline:
    """Theirs with random weights of ours, on its own."""
    text = CFG.text[0]
    for file, content in vocabulary.files(text).items():
        (tmp_path / file).write_text(content, encoding="utf-8")
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                        clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return diffusers.StableDiffusionPipeline(
        vae=vae_like(random_model(VAE, CFG.vae)), unet=unet_like(random_model(UNet, CFG.unet)),
        text_encoder=text_like(random_model(CLIPText, text)), tokenizer=CLIPTokenizer.from_pretrained(tmp_path),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@pytest.fixture
def sd(pipe, tmp_path) -> minisd.StableDiffusion:
    pipe.save_pretrained(tmp_path / "pipeline")
    return minisd.load(tmp_path / "pipeline", device="cpu", dtype="float32")


def latents_of_ours(sd) -> torch.Tensor:
    last = []
    drawing = sd.drawing(PROMPT, NEGATIVE, steps=3, cfg=4.0, sampler="ddim", seed=3, size=(64, 64))
    sd.draw([drawing], lambda x, s: last.append(x / s.next.scale) or x)
    return last[-1]


def latents_of_theirs(pipe) -> torch.Tensor:
    return pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=3, guidance_scale=4.0, height=64, width=64,
                generator=torch.Generator().manual_seed(3), output_type="latent").images


def noisy(model: torch.nn.Module, name: str) -> None:
    """An adapter that adds something everywhere."""
    generator = torch.Generator().manual_seed(7)
    for parameter in attach.parameters(model, name):
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_(False)


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_ours_is_drawn_with_by_diffusers(sd, pipe, tmp_path, dialect, measured):
    before = latents_of_ours(sd)
    for part, model in parts(sd).items():
        attach.attach(model, attach.LoRASpec("style", 3, 2.0, TARGETS[part]), torch.Generator().manual_seed(0))
        noisy(model, "style")
    expected = latents_of_ours(sd)
    write_adapter(taken(sd, "style"), tmp_path / "style.safetensors", dialect)
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors")
    measured(f"LoRA of ours in diffusers: {dialect}",
             assert_close("latents", latents_of_theirs(pipe), expected, TOLERANCE))
    assert (before - expected).abs().max() > 1e-2


def given_by_diffusers(pipe, folder: Path) -> None:
    for name, targets in THEIR_TARGETS.items():
        config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=targets,
                                 rank_pattern={"to_q": 2}, alpha_pattern={"to_k": 1})
        with torch.random.fork_rng():
            torch.manual_seed(1)
            getattr(pipe, name).add_adapter(config, "style")
    layers = {name: peft.get_peft_model_state_dict(getattr(pipe, name), adapter_name="style") for name in THEIR_TARGETS}
    metadata = {f"{name}_lora_adapter_metadata": getattr(pipe, name).peft_config["style"].to_dict() for name in layers}
    metadata = {name: {key: sorted(value) if isinstance(value, set) else value for key, value in told.items()}
                for name, told in metadata.items()}
    pipe.save_lora_weights(folder, layers["unet"], layers["text_encoder"], **metadata)


def test_theirs_is_drawn_with_by_us(sd, pipe, tmp_path, measured):
    given_by_diffusers(pipe, tmp_path)
    name = add_lora(sd, tmp_path / "pytorch_lora_weights.safetensors", 0.7)
    pipe.set_adapters(["style"], [0.7])
    measured("LoRA of diffusers in ours",
             assert_close("latents", latents_of_ours(sd), latents_of_theirs(pipe), TOLERANCE))
    for model in parts(sd).values():
        attach.detach(model, name)
    pipe.disable_lora()
    assert_close("latents", latents_of_ours(sd), latents_of_theirs(pipe), TOLERANCE)


def test_pefts_own_folder(sd, pipe, tmp_path, measured):
    config = peft.LoraConfig(r=4, lora_alpha=1, init_lora_weights=False, target_modules=["to_q", "conv1"],
                             alpha_pattern={"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 9})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = peft.get_peft_model(pipe.unet, config)
    unet.save_pretrained(tmp_path / "peft")
    add_lora(sd, tmp_path / "peft")
    x, t, context = torch.ones(1, 4, 8, 8), torch.tensor([501]), torch.ones(1, 7, CFG.unet.context_dim)
    with torch.no_grad():
        found, expected = sd.unet(x, t, context), unet(x, t, context).sample
    measured("LoRA of PEFT in ours", assert_close("noise", found, expected, TOLERANCE))


def test_merged_is_as_beside(sd, tmp_path):
    for part, model in parts(sd).items():
        attach.attach(model, attach.LoRASpec("style", 3, 2.0, TARGETS[part]), torch.Generator().manual_seed(0))
        noisy(model, "style")
    beside = latents_of_ours(sd)
    merged = [attach.merge(model) for model in parts(sd).values()]
    assert_close("latents", latents_of_ours(sd), beside, TOLERANCE)
    for one in merged:
        one.undo()
    assert torch.equal(latents_of_ours(sd), beside)
