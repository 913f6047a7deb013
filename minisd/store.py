"""A native model folder: `config.json` and one safetensors file per part, all that is needed to draw with it.

Parts are `unet`, `vae`, `text` (`text_2` for a second encoder) and, where it is shipped, `vision`. The config is a
ModelConfig, and may hold `defaults` beside it: what the model likes best, such as {"guidance": 3}.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from minisd.clip import CLIPText, CLIPVision
from minisd.config import ModelConfig, text_parts
from minisd.devices import pick_device, pick_dtype
from minisd.drawing.plan import Defaults
from minisd.errors import USAGE, MinisdError
from minisd.fast.eightbit import eight_bit
from minisd.files import fresh
from minisd.pipeline import StableDiffusion
from minisd.unet import UNet
from minisd.vae import VAE
from weights_convert.folders import CONFIG, INDEX, from_native, native_config
from weights_convert.model import Model, Part, own_configs, structured
from weights_convert.sources import open_model
from weights_convert.write import fingerprint as sha256_of
from weights_convert.write import save_file, to_native

ASSETS = Path(__file__).parent / "assets"         # embedded models have a folder here, and its name
SHOWN_KEYS = 10
NOTHING: Mapping[str, str] = MappingProxyType({})
RANDOM = {init.normal_, init.uniform_, init.kaiming_uniform_}


class Blank(TorchFunctionMode):
    """Modules built under it, on the meta device, are left without initial values.

    Drawing them would be wasted, and the meta device's random functions import torch's compiler: 1.4 s.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        if func in RANDOM:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def parts(cfg: ModelConfig) -> dict[str, Callable[[], nn.Module]]:
    """The parts that a model of this config has, and how to build each."""
    made: dict[str, Callable[[], nn.Module]] = {"unet": partial(UNet, cfg.unet), "vae": partial(VAE, cfg.vae)}
    made |= {name: partial(CLIPText, text) for name, text in text_parts(cfg.text).items()}
    if cfg.vision is not None:
        made["vision"] = partial(CLIPVision, cfg.vision)
    return made


def save(folder: str | Path, cfg: ModelConfig, modules: Mapping[str, nn.Module], dtype: torch.dtype = torch.float16,
         metadata: Mapping[str, str] = NOTHING, keep: bool = False, defaults: Defaults | None = None) -> None:
    """Write some or all parts of a model; `metadata` goes into every safetensors file, `defaults` into the config.

    The folder becomes the new one at once: a kill leaves the old or the new. With `keep`, what else lies in the old one
    is in the new one as well, and so are its defaults where none are given.
    """
    folder = Path(folder).absolute()
    known = own_configs(cfg)
    unknown = [name for name in modules if name not in parts(cfg)]
    if unknown:
        raise MinisdError(f"no part named {', '.join(unknown)}", str(folder),
                          f"the config has {', '.join(parts(cfg))}", code=USAGE)
    made = {name: Part(name, "ours", known[name], module.state_dict()) for name, module in modules.items()}
    told = native_config(folder)[1] if keep and (folder / CONFIG).is_file() else {}
    model = Model("memory", "native", made, cfg, (), defaults=asdict(defaults) if defaults else told)
    with fresh(folder) as path:
        if keep and folder.is_dir():
            written = [CONFIG, *(f"{name}.safetensors" for name in modules)]
            shutil.copytree(folder, path, copy_function=linked, ignore=lambda *_: written)
        to_native(model, path, lambda file, tensors: save_file(file, tensors, {"format": "pt", **metadata}, dtype))


def linked(old: str, new: str) -> None:
    """The same file under another name, or a copy of it where the system has no such thing."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)


@torch.inference_mode(False)                      # inside it, too, weights are such as any mode can read
def load_modules(folder: str | Path, names: Iterable[str], device: str | torch.device = "cpu",
                 dtype: torch.dtype = torch.float32) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """The config and the parts asked for; parameters are as trainable as freshly built ones."""
    model, names = from_native(Path(folder)), tuple(names)
    cfg, tensors = model.cfg, _tensors(model, names)
    del model
    return cfg, {name: _filled(parts(cfg)[name], tensors[name], name, torch.device(device), dtype) for name in names}


@torch.inference_mode(False)
def load(source: str | Path = "emoji", device: str = "auto", dtype: str = "auto", prediction: str | None = None,
         ema: bool = False) -> StableDiffusion:
    """A model ready to draw: an embedded one by its name, a folder of ours or of diffusers, or a single file.

    `prediction` and `ema` are for single files that do not say what their UNet predicts, or hold EMA copies beside
    the weights. See `devices` for what `auto` chooses. The dtype "int8" keeps the weights of UNet and text encoders in
    8 bits, and computes as `auto` does.
    """
    path = find(source)
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    small, computing = kind == torch.int8, pick_dtype("auto", where) if kind == torch.int8 else kind
    model = open_model(path, prediction, ema)
    model.must_be_drawable()
    model.must_be_decided()
    cfg, defaults = model.cfg, structured(Defaults, model.defaults, str(path / CONFIG))
    known = {name: build for name, build in parts(cfg).items() if name != "vision"}
    tensors = _tensors(model, known)
    del model                                     # a mapping of a file goes with the last of its tensors
    modules = {name: _filled(build, tensors[name], f"{path}: {name}", where,
                             None if small and name != "vae" else computing).requires_grad_(False)
               for name, build in known.items()}
    for name in modules.keys() - {"vae"} if small else ():
        eight_bit(modules[name], computing)
    text = tuple(cast(CLIPText, module) for name, module in modules.items() if name.startswith("text"))
    return StableDiffusion(cfg, cast(UNet, modules["unet"]), cast(VAE, modules["vae"]), text, defaults, path.name)


def _tensors(model: Model, names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """Those of the parts asked for, in our names."""
    known = parts(model.cfg)
    if unknown := [name for name in names if name not in known]:
        raise MinisdError(f"the model has no part {unknown[0]!r}", model.where, f"its config has {', '.join(known)}")
    if missing := [name for name in names if name not in model.parts]:
        raise MinisdError(f"this is {model.family}: it has no {', '.join(missing)}", model.where,
                          remedy="give a whole checkpoint")
    return {name: model.parts[name].ours() for name in names}


def _filled(build: Callable[[], nn.Module], tensors: dict[str, Tensor], whose: str, device: torch.device,
            dtype: torch.dtype | None) -> nn.Module:
    """A model of these tensors: as they lie in their file where device and dtype are as wanted, else copied.

    They are taken out one by one, in the order in which they lie in memory, so that mappings go as they are copied.
    """
    module, made = _empty(build), {}
    _check_fit(tensors, module, whose)
    for key in sorted(tensors, key=lambda key: tensors[key].data_ptr()):
        made[key] = tensors.pop(key).to(device=device, dtype=dtype)
    module.load_state_dict(made, assign=True)
    return module.eval()


def drawable(part: Part) -> nn.Module:
    """The UNet, VAE or text model of a checkpoint's part, on the CPU in float32."""
    kinds: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "vae": VAE, "text": CLIPText}
    build = partial(kinds[part.kind], part.cfg)
    return _filled(build, part.ours(), part.where, torch.device("cpu"), torch.float32).requires_grad_(False)


def must_fit(model: Model) -> None:
    """Every tensor of a checkpoint against the models of its config; a shape that differs is an error."""
    known = parts(model.cfg)
    for name in known.keys() & model.parts.keys():
        _check_fit(model.parts[name].ours(), _empty(known[name]), f"{model.where}: {name}")


def blank(cfg: ModelConfig, names: Collection[str]) -> dict[str, nn.Module]:
    """Parts of a model of this config as their shapes alone, on the meta device."""
    return {name: _empty(build) for name, build in parts(cfg).items() if name in names}


def _empty(build: Callable[[], nn.Module]) -> nn.Module:
    """A module without memory for its weights, since a file's are assigned, not copied."""
    with torch.device("meta"), Blank():
        return build()


def is_foreign(path: Path) -> bool:
    """Whether a source is a single file or a diffusers folder."""
    return path.is_file() or (path / INDEX).is_file()


def find(source: str | Path) -> Path:
    """The folder of an embedded model's name, or the file or folder of a path."""
    if str(source) in embedded_names():
        return embedded(str(source))
    path = Path(source)
    if not path.exists():
        raise MinisdError("no such model", str(source), f"embedded are: {', '.join(embedded_names()) or 'none'}",
                          "give one of those names, a checkpoint file, or a model folder")
    return path.resolve()


def embedded(name: str) -> Path:
    """The folder of an embedded model; a name that came in a stranger's file can lead nowhere else."""
    if name not in embedded_names():
        raise MinisdError(f"no embedded model is called {name[:60]!r}", "",
                          f"embedded are: {', '.join(embedded_names()) or 'none'}", "give its folder by --model")
    return ASSETS / name


def embedded_names() -> list[str]:
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{CONFIG}"))


def fingerprint(folder: Path) -> str:
    """sha256 over the weights that draw, in a fixed order: 64 hexadecimal digits."""
    if is_foreign(folder):
        return sha256_of(open_model(folder).files)
    digest = hashlib.sha256()
    for name in parts(read_config(folder)):
        if name != "vision":
            with (folder / f"{name}.safetensors").open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder, strictly read."""
    return native_config(folder)[0]


def _check_fit(found: Mapping[str, Tensor], module: nn.Module, whose: str) -> None:
    """Numbers of the shapes that the module has."""
    wanted = module.state_dict()
    faults = [f"{key} is {tensor.dtype}, not floating-point"
              for key, tensor in found.items() if not tensor.is_floating_point()]
    faults += [f"{key} is {list(tensor.shape)}, should be {list(wanted[key].shape)}"
               for key, tensor in found.items() if tensor.shape != wanted[key].shape]
    if faults:
        more = f" … and {len(faults) - SHOWN_KEYS} more" if len(faults) > SHOWN_KEYS else ""
        raise MinisdError(f"{len(faults)} tensors do not fit the model of this config", whose,
                          "; ".join(faults[:SHOWN_KEYS]) + more, "use the config that was written with these weights")
