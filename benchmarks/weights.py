"""One set of random weights as two folders, ours and diffusers': `python benchmarks/weights.py FOLDER [--quick]`.

Weights are scaled so that values keep their size from layer to layer: outputs that vanished would agree about nothing.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from comparison import random_model  # noqa: E402
from reference.peers import text_like, unet_like, vae_like  # noqa: E402

from minisd import store  # noqa: E402
from minisd.bpe import BYTES, MERGES_FILE, byte_letters, read_merges  # noqa: E402
from minisd.clip import CLIPText  # noqa: E402
from minisd.config import TINY_MODEL, CLIPTextConfig, ModelConfig  # noqa: E402
from minisd.unet import UNet  # noqa: E402
from minisd.vae import VAE  # noqa: E402

OURS, THEIRS = "minisd", "diffusers"


def make(folder: Path, cfg: ModelConfig, seed: int = 0) -> None:
    """Both folders; the whole is in memory twice meanwhile."""
    modules: dict[str, Any] = {
        "unet": random_model(UNet, cfg.unet, seed), "vae": random_model(VAE, cfg.vae, seed + 1),
        "text": random_model(CLIPText, cfg.text[0], seed + 2)}
    save_ours(folder / OURS, cfg, modules)
    save_theirs(folder / THEIRS, cfg, modules)


def save_ours(folder: Path, cfg: ModelConfig, modules: dict[str, Any]) -> None:
    store.save(folder, cfg, modules, torch.float32)


def save_theirs(folder: Path, cfg: ModelConfig, modules: dict[str, Any]) -> None:
    """As diffusers' own users find Stable Diffusion 1.5, but for the safety checker."""
    noise = cfg.noise
    scheduler = DDIMScheduler(
        num_train_timesteps=noise.steps, beta_start=noise.beta_start, beta_end=noise.beta_end,
        beta_schedule=noise.betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae_like(modules["vae"]), text_encoder=text_like(modules["text"]), unet=unet_like(modules["unet"]),
        tokenizer=tokenizer_like(folder / "tokenizer", cfg.text[0]), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)


def tokenizer_like(folder: Path, cfg: CLIPTextConfig) -> CLIPTokenizer:
    """transformers' tokenizer from the files that it reads, made of our merges."""
    folder.mkdir(parents=True)
    data = (ROOT / "minisd" / "assets" / MERGES_FILE).read_bytes()
    merges = [line.strip() for line in read_merges(data, cfg.vocab_size - 2 * BYTES - 2)]
    letters = list(byte_letters().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(line.replace(" ", "") for line in merges),
              "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": cfg.window, "pad_token": "<|endoftext|>"}))
    return cast(CLIPTokenizer, CLIPTokenizer.from_pretrained(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a miniature instead of Stable Diffusion 1.5")
    options = parser.parse_args()
    make(options.folder, TINY_MODEL if options.quick else ModelConfig())


if __name__ == "__main__":
    main()
