"""Two checkpoints, or one and the installed reference, on the same seeded inputs: how far every layer differs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minisd.errors import USAGE, MinisdError
from minisd.store import Blank, drawable
from weights_convert import configs
from weights_convert.model import Part, set_aside
from weights_convert.sources import open_model
from weights_convert.tables import Row
from weights_convert.translate import from_ours

REFERENCE = "diffusers"
Run = Callable[[nn.Module], object]


def compare(a: object, b: object, prediction: str | None, size: int, tolerance: float) -> float:
    """Prints each layer's largest absolute and relative difference; returns the largest relative one."""
    first = open_model(str(a), prediction)
    second = first if str(b) == REFERENCE else open_model(str(b), prediction)
    worst, over = 0.0, ""
    for name in ("text", "unet", "vae"):
        if name not in first.parts or name not in second.parts:
            continue
        one, other = first.parts[name], second.parts[name]
        if str(b) == REFERENCE:
            one = set_aside(one)[0] if name == "text" else one
            theirs, pairs = reference(one), paired(one.rows("hf-bare" if name == "text" else "diffusers"))
        else:
            theirs, pairs = drawable(other), {module: module for module in paired(one.rows("ours"))}
        ours = drawable(one)
        found = outputs(ours, list(pairs), runs(one, size))
        expected = outputs(theirs, list(pairs.values()), runs(one, size))
        for layer, tensor in found.items():
            largest, relative = difference(tensor, expected[pairs[layer]])
            over = over or (f"{name}.{layer}" if relative > tolerance else "")
            worst = max(worst, relative)
            print(f"{name + '.' + layer:<64} {largest:.3g} {relative:.3g}")
    print(f"first layer over {tolerance:g}: {over or 'none'}; largest relative difference {worst:.3g}")
    return worst


def paired(rows: list[Row]) -> dict[str, str]:
    """Our modules with weights, and the other's, by the key table."""
    names = [pair for row in rows if row.ours for pair in zip(row.ours, row.theirs, strict=True)]
    modules = {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for ours, theirs in names}
    return {ours: theirs for ours, theirs in modules.items() if ours != "position"}  # added, not run


def runs(part: Part, size: int) -> Run:
    """What runs a model of this part: inputs are drawn from a fixed seed."""
    noise, cfg = torch.Generator().manual_seed(0), part.cfg
    if part.kind == "text":
        ids = torch.randint(0, cfg.vocab_size - 2, (1, cfg.window), generator=noise)
        ids[0, -1] = cfg.vocab_size - 1
        return lambda model: model(ids)
    x = torch.randn(1, cfg.latent_channels if part.kind == "vae" else cfg.in_channels, size, size, generator=noise)
    if part.kind == "unet":
        context = torch.randn(1, 77, cfg.context_dim, generator=noise)
        return lambda model: model(x, torch.tensor([501]), context)
    pixels = torch.rand(1, cfg.channels, size * cfg.factor, size * cfg.factor, generator=noise) * 2 - 1
    return lambda model: (model.encode(pixels), model.decode(x))  # type: ignore[operator]


@torch.inference_mode()
def outputs(model: nn.Module, names: list[str], run: Run) -> dict[str, Tensor]:
    """What the named modules put out, in the order in which they ran first."""
    kept: dict[str, Tensor] = {}
    with hooked(model, names, lambda name, y: kept.setdefault(name, y.clone())):
        run(model)
    return kept


@contextmanager
def hooked(model: nn.Module, names: list[str], keep: Callable[[str, Tensor], object]) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        def called(module: nn.Module, inputs: object, y: Tensor) -> None:
            keep(name, y)
        return called
    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The largest, and relative to the largest value; infinite where the values are not finite or not as many."""
    if a.numel() != b.numel():
        return torch.inf, torch.inf
    largest = (a.double() - b.double().reshape(a.shape)).abs().max().nan_to_num(nan=torch.inf).item()
    scale = b.double().abs().max().item()
    return largest, largest / scale if largest and scale else largest


def reference(part: Part) -> nn.Module:
    """diffusers' and transformers' model of the part's config, with its weights."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise MinisdError("the reference is not installed", "parity", remedy="pip install minisd[reference]",
                          code=USAGE) from error
    ours = {name: tensor.float() for name, tensor in part.ours().items()}
    with Blank():
        if part.kind == "text":
            told: Mapping[str, Any] = configs.text_json(part.cfg)
            model: nn.Module = transformers.CLIPTextModel(transformers.CLIPTextConfig(**told))
        elif part.kind == "unet":
            model = diffusers.UNet2DConditionModel.from_config(configs.unet_json(part.cfg, 64))
        else:
            model = diffusers.AutoencoderKL.from_config(configs.vae_json(part.cfg, 1.0, 512))
    dialect = "hf-bare" if part.kind == "text" else "diffusers"
    model.load_state_dict(from_ours(ours, part.rows(dialect)), assign=True)
    return model.requires_grad_(False).eval()
