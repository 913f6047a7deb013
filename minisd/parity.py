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
from weights_convert.tables.unet import LABELLED
from weights_convert.translate import from_ours

REFERENCE = "diffusers"
NAMES = {"text": "hf-bare", "unet": LABELLED}     # whose modules the reference has; a UNet's label is given to it whole
PARTS = ("text", "unet", "vae")
Run = Callable[[nn.Module], object]


def compare(a: object, b: object, prediction: str | None, size: int, tolerance: float) -> float:
    """Prints each layer's largest absolute and relative difference; returns the largest relative one."""
    first = open_model(str(a), prediction)
    second = first if str(b) == REFERENCE else open_model(str(b), prediction)
    both = [name for name in PARTS if name in first.parts and name in second.parts]
    if not both:
        raise MinisdError("there is nothing to compare", f"{a} beside {b}", f"{first.family}, and {second.family}",
                          "give two that have a text encoder, a UNet or a VAE in common", USAGE)
    worst, over = 0.0, ""
    print(f"{'layer':<64} {'largest':>9} {'relative':>9}")
    for name in both:
        found = beside_reference(first.parts[name], size) if str(b) == REFERENCE else side_by_side(
            first.parts[name], second.parts[name], size)
        for layer, (largest, relative) in found.items():
            over = over or (f"{name}.{layer}" if relative > tolerance else "")
            worst = max(worst, relative)
            print(f"{name + '.' + layer:<64} {largest:>9.3g} {relative:>9.3g}")
    if left := sorted((first.parts.keys() | second.parts.keys()) - set(both)):
        print(f"not compared: {', '.join(left)}")
    print(f"first layer over {tolerance:g}: {over or 'none'}; largest relative difference {worst:.3g}")
    return worst


def side_by_side(one: Part, other: Part, size: int) -> dict[str, tuple[float, float]]:
    """The differences of two parts of one shape, by layer."""
    shapes = [{key: list(tensor.shape) for key, tensor in part.ours().items()} for part in (one, other)]
    if odd := sorted(key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key)):
        raise MinisdError(f"the {one.name} of one is not of the other's shape", f"{one.where} beside {other.where}",
                          f"{len(odd)} tensors differ, such as {odd[0]}: {shapes[0].get(odd[0], 'none')} and "
                          f"{shapes[1].get(odd[0], 'none')}", "give two checkpoints of one family", USAGE)
    return compared(drawable(one), drawable(other), {name: name for name in paired(one.rows("ours"))}, runs(one, size))


def beside_reference(part: Part, size: int) -> dict[str, tuple[float, float]]:
    """The differences from the installed reference with the same weights, by layer."""
    part = set_aside(part)[0] if part.kind == "text" else part
    pairs = paired(part.rows(NAMES.get(part.kind, "diffusers")))
    return compared(drawable(part), reference(part), pairs, runs(part, size))


def compared(ours: nn.Module, theirs: nn.Module, pairs: dict[str, str], run: Run) -> dict[str, tuple[float, float]]:
    """Each layer's difference, in the order in which ours ran."""
    found, expected = outputs(ours, list(pairs), run), outputs(theirs, list(pairs.values()), run)
    return {layer: difference(tensor, expected[pairs[layer]]) for layer, tensor in found.items()}


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
        label = torch.randn(1, cfg.label_dim, generator=noise) if cfg.label_dim else None
        return lambda model: model(x, torch.tensor([501]), context, label)
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
            model = diffusers.UNet2DConditionModel.from_config(configs.unet_json(part.cfg, 64, pooled_label=True))
        else:
            model = diffusers.AutoencoderKL.from_config(configs.vae_json(part.cfg, 1.0, 512))
    model.load_state_dict(from_ours(ours, part.rows(NAMES.get(part.kind, "diffusers"))), assign=True)
    return model.requires_grad_(False).eval()
