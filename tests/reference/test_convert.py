"""Pipelines made and saved by diffusers and transformers, in every layout: read, drawn from, written, read by them."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from comparison import assert_close, random_model

import minisd
from minisd.clip import CLIPText
from minisd.unet import UNet
from minisd.vae import VAE
from weights_convert import vocabulary
from weights_convert.sources import open_model
from weights_convert.write import write

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: pip install minisd[reference]")
from families import FAMILIES, forgetful  # noqa: E402
from reference.peers import text_like, unet_like, vae_like  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

TOLERANCE = 1e-5
LAYOUTS = ("folder", "fp16", "shards", "native", "ldm", "foreign ldm", "rewritten")
PROMPT, NEGATIVE = "a red apple on the moon", "blue"
os.environ["HF_HUB_OFFLINE"] = "1"


@cache
def pipeline(name):
    """Theirs, with random weights of ours; of SD2 the text tower has no layer to leave out, as diffusers saves it."""
    cfg = FAMILIES[name]
    text = cfg.text[0]
    text = replace(text, depth=min(text.depth - text.skipped_layers, 3), skipped_layers=0)
    told = vocabulary.files(text)
    folder = Path(os.environ["PYTEST_TMP"]) / f"tokenizer-{name}"
    folder.mkdir(exist_ok=True)
    for file, content in told.items():
        (folder / file).write_text(content, encoding="utf-8")
    predicts = {"v": "v_prediction"}.get(cfg.prediction, "epsilon")
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                                        prediction_type=predicts)
    return diffusers.StableDiffusionPipeline(
        vae=vae_like(random_model(VAE, cfg.vae)), unet=unet_like(random_model(UNet, cfg.unet)),
        text_encoder=text_like(random_model(CLIPText, text)), tokenizer=CLIPTokenizer.from_pretrained(folder),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@pytest.fixture(scope="module", autouse=True)
def temporary(tmp_path_factory):
    os.environ["PYTEST_TMP"] = str(tmp_path_factory.mktemp("tokenizers"))


@cache
def layout(name, kind):
    """The family's pipeline in a layout: the first three as diffusers saves it, the rest as we convert it."""
    root = Path(os.environ["PYTEST_TMP"]).parent / f"{name}-{kind}".replace(" ", "-")
    how = {"folder": {}, "fp16": {"variant": "fp16"}, "shards": {"max_shard_size": "300KB"}}
    if kind in how:
        pipeline(name).save_pretrained(root, **how[kind])
        return root
    if kind == "foreign ldm":
        return forgetful(layout(name, "ldm"), root.with_suffix(".safetensors"))
    to = {"rewritten": "diffusers"}.get(kind, kind)
    root = root.with_suffix(".safetensors") if kind == "ldm" else root
    write(open_model(layout(name, "ldm" if kind == "rewritten" else "folder")), root, to)
    return root


def loaded(name, kind):
    prediction = FAMILIES[name].prediction if kind == "foreign ldm" else None
    return minisd.load(layout(name, kind), device="cpu", dtype="float32", prediction=prediction)


def inputs(channels):
    noise = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, 8, 8, generator=noise), torch.tensor([501])


@torch.inference_mode()
def same_networks(pipe, sd, measured, what):
    """Words to states, states and noise to an answer, latents to a picture."""
    context = sd.encode([PROMPT]).context
    expected = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    x, t = inputs(sd.cfg.unet.in_channels)
    found, wanted = sd.unet(x, t, context), pipe.unet(x, t, expected).sample
    picture, wanted_picture = sd.vae.decode(found), pipe.vae.decode(wanted).sample
    measured(what, max(assert_close("text", context, expected, TOLERANCE),
                       assert_close("unet", found, wanted, TOLERANCE),
                       assert_close("picture", picture, wanted_picture, TOLERANCE)))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_of_every_family_computes_the_same(name, kind, measured):
    same_networks(pipeline(name), loaded(name, kind), measured, f"converted: {kind}")


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", [name for name, cfg in FAMILIES.items() if cfg.unet.in_channels == 4])
def test_every_layout_of_every_family_draws_the_same(name, kind, measured):
    sd, last = loaded(name, kind), []
    drawing = sd.drawing(PROMPT, NEGATIVE, steps=4, cfg=7.5, sampler="ddim", seed=3, size=(64, 64))
    sd.draw([drawing], lambda x, s: last.append(x / s.next.scale) or x)
    measured(f"drawn: {kind}", assert_close("latents", last[-1], drawn(pipeline(name)), TOLERANCE))


def drawn(pipe):
    """Latents of the picture by diffusers, with the scheduler of the others."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=4, guidance_scale=7.5, height=64, width=64,
                generator=torch.Generator().manual_seed(3), output_type="latent").images


def same_picture(pipe, name, measured, what):
    if FAMILIES[name].unet.in_channels == 4:
        pipe.scheduler = pipeline(name).scheduler
        measured(f"drawn: {what}", assert_close("latents", drawn(pipe), drawn(pipeline(name)), TOLERANCE))


@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_loads_the_folders_we_write(name, measured):
    pipe = diffusers.DiffusionPipeline.from_pretrained(layout(name, "rewritten"), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    special = {9: "StableDiffusionInpaintPipeline", 8: "StableDiffusionInstructPix2PixPipeline"}
    assert type(pipe).__name__ == special.get(FAMILIES[name].unet.in_channels, "StableDiffusionPipeline")
    assert pipe.scheduler.config.prediction_type == pipeline(name).scheduler.config.prediction_type
    pipe.encode_prompt = diffusers.StableDiffusionPipeline.encode_prompt.__get__(pipe)
    same_networks(pipe, loaded(name, "folder"), measured, "our folder in diffusers")
    same_picture(pipe, name, measured, "our folder in diffusers")


# diffusers reads the blocks of a single file as equally many in every stage.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "uneven"])
def test_diffusers_loads_the_single_files_we_write(name, measured):
    kind = type(diffusers.DiffusionPipeline.from_pretrained(layout(name, "rewritten"), local_files_only=True))
    pipe = kind.from_single_file(layout(name, "ldm"), config=str(layout(name, "rewritten")), local_files_only=True)
    pipe.encode_prompt = diffusers.StableDiffusionPipeline.encode_prompt.__get__(pipe)
    same_networks(pipe, loaded(name, "folder"), measured, "our single file in diffusers")
    same_picture(pipe, name, measured, "our single file in diffusers")
