"""A native model folder: `config.json` and one safetensors file per part, all that is needed to draw with it.

Parts are `unet`, `vae`, `text` (`text_2` for a second encoder) and, where it is shipped, `vision`. The config is a
ModelConfig, and may hold `defaults` beside it: what the model likes best, such as {"guidance": 3}.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from minisd import schema
from minisd.clip import CLIPText, CLIPVision
from minisd.config import ModelConfig
from minisd.devices import pick_device, pick_dtype
from minisd.drawing import Defaults
from minisd.errors import BAD_FILE, NUMERICAL, USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from minisd.unet import UNet
from minisd.vae import VAE
from weights_convert.folders import INDEX
from weights_convert.model import Model, Part
from weights_convert.sources import open_model
from weights_convert.write import fingerprint as sha256_of

ASSETS = Path(__file__).parent / "assets"         # embedded models have a folder here, and its name
CONFIG, DEFAULTS = "config.json", "defaults"
SHOWN_KEYS = 10
GROUP = 1 << 26                                   # numbers that one mapping of a file holds
LFS_POINTER = b"version https://git-lfs"
T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]
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
    for n, text in enumerate(cfg.text, start=1):
        made["text" if n == 1 else f"text_{n}"] = partial(CLIPText, text)
    if cfg.vision is not None:
        made["vision"] = partial(CLIPVision, cfg.vision)
    return made


def save(folder: str | Path, cfg: ModelConfig, modules: Mapping[str, nn.Module],
         dtype: torch.dtype = torch.float16, metadata: Mapping[str, str] = NOTHING) -> None:
    """Write some or all parts of a model; `metadata` goes into every safetensors file.

    Everything is written and synchronised under a temporary name first: a kill leaves no half-written model.
    """
    folder = Path(folder).absolute()
    known = parts(cfg)
    unknown = [name for name in modules if name not in known]
    if unknown:
        raise MinisdError(f"no part named {', '.join(unknown)}", str(folder),
                          f"the config has {', '.join(known)}", code=USAGE)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        (fresh / CONFIG).write_text(json.dumps(asdict(cfg), indent=1) + "\n", encoding="utf-8")
        for name, module in modules.items():
            tensors = _narrowed(module, dtype, name)
            save_file(tensors, fresh / f"{name}.safetensors", {"format": "pt", **metadata})
        for path in fresh.iterdir():
            path.chmod((fresh / CONFIG).stat().st_mode)   # safetensors makes files that only their owner may read
            _sync(path)
        _sync(fresh)
        _put_in_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_modules(folder: str | Path, names: Iterable[str], device: str | torch.device = "cpu",
                 dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.preserve_format,
                 ) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """The config and the parts asked for; parameters are as trainable as freshly built ones.

    `layout` is for those of convolutions, as far as they are copied: what has its dtype already stays in the file.
    """
    folder = Path(folder)
    cfg = read_config(folder)
    known, modules = parts(cfg), {}
    for name in names:
        if name not in known:
            raise MinisdError(f"the model has no part {name!r}", str(folder),
                              f"its config has {', '.join(known)}")
        module, wanted = _empty(known[name])
        tensors = _tensors(folder / f"{name}.safetensors", wanted, torch.device(device), dtype, layout)
        module.load_state_dict(tensors, assign=True)
        modules[name] = module.eval()
    return cfg, modules


def load(source: str | Path = "emoji", device: str = "auto", dtype: str = "auto", prediction: str | None = None,
         ema: bool = False) -> StableDiffusion:
    """A model ready to draw: an embedded one by its name, a folder of ours or of diffusers, or a single file.

    `prediction` and `ema` are for single files that do not say what their UNet predicts, or hold EMA copies beside
    the weights. See `devices` for what `auto` chooses.
    """
    path = find(source)
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    if is_foreign(path):
        cfg, modules, defaults = *_foreign(open_model(path, prediction, ema), where, kind), Defaults()
    else:
        defaults = read_defaults(path)
        names = [name for name in parts(read_config(path)) if name != "vision"]
        cfg, modules = load_modules(path, names, where, kind, torch.channels_last)
    for module in modules.values():
        module.requires_grad_(False)
    text = tuple(cast(CLIPText, module) for name, module in modules.items() if name.startswith("text"))
    return StableDiffusion(cfg, cast(UNet, modules["unet"]), cast(VAE, modules["vae"]), text, defaults, path.name)


def _foreign(model: Model, device: str | torch.device, dtype: torch.dtype) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """The parts of a checkpoint in another layout than ours."""
    model.must_be_drawable()
    model.must_be_decided()
    known, modules = parts(model.cfg), {}
    missing = [name for name in known if name not in model.parts]
    if missing:
        raise MinisdError(f"this is {model.family}: it has no {', '.join(missing)}", model.where,
                          remedy="give a whole checkpoint")
    for name, build in known.items():
        modules[name] = _filled(build, model.parts[name], device, dtype)
    return model.cfg, modules


def _filled(build: Callable[[], nn.Module], part: Part, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """A model with the tensors of a checkpoint's part."""
    module, wanted = _empty(build)
    tensors, where = part.ours(), Path(part.name)
    _check_shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()}, wanted, where)
    made = {key: _floats(tensor, key, where).to(device, dtype) for key, tensor in tensors.items()}
    module.load_state_dict(made, assign=True)
    return module.eval()


def drawable(part: Part) -> nn.Module:
    """The UNet, VAE or text model of a checkpoint's part, on the CPU in float32."""
    kinds: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "vae": VAE, "text": CLIPText}
    return _filled(partial(kinds[part.kind], part.cfg), part, "cpu", torch.float32).requires_grad_(False)


def must_fit(model: Model) -> None:
    """Every tensor of a checkpoint against the models of its config; a shape that differs is an error."""
    known = parts(model.cfg)
    for name in known.keys() & model.parts.keys():
        found = {key: tuple(_floats(tensor, key, Path(model.where)).shape)
                 for key, tensor in model.parts[name].ours().items()}
        _check_shapes(found, _empty(known[name])[1], Path(model.where))


def _empty(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """A module without memory for its weights, since a file's are assigned, not copied; and the shapes it needs."""
    with torch.device("meta"), Blank():
        module = build()
    return module, {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


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
    data = _read_json(folder)
    return _read(ModelConfig, {key: value for key, value in data.items() if key != DEFAULTS}, folder)


def read_defaults(folder: Path) -> Defaults:
    """What the model likes best, as far as its config says so."""
    return _read(Defaults, _read_json(folder).get(DEFAULTS, {}), folder)


def _read(cls: type[T], data: Any, folder: Path) -> T:
    try:
        return schema.read(cls, data, str(folder / CONFIG))
    except MinisdError as error:
        error.code = BAD_FILE                     # in a recipe it would be the user's own words, this is a file
        raise


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise MinisdError("no such model folder" if not folder.exists() else "not a folder", str(folder),
                          remedy=f"give a folder with {CONFIG} and the safetensors files beside it")
    if not path.is_file():
        raise MinisdError(f"no {CONFIG} in the model folder", str(folder),
                          remedy="give a folder that minisd has written")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MinisdError("the model's config is not JSON", str(path), str(error)[:200]) from error
    if not isinstance(data, dict):
        raise MinisdError("the model's config is not a JSON object", str(path))
    return data


def _tensors(path: Path, wanted: Shapes, device: torch.device, dtype: torch.dtype,
             layout: torch.memory_format) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped, once its header has been found to hold exactly what is wanted.

    A mapping lives as long as any of its tensors, and what was read of it counts as memory: so each maps but a few.
    """
    _check_file(path)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = list(file.keys())
            _check_shapes({key: tuple(file.get_slice(key).get_shape()) for key in found}, wanted, path)
        for keys in _groups(wanted):
            with safe_open(path, framework="pt", device="cpu") as file:
                tensors |= {key: _placed(_floats(file.get_tensor(key), key, path), device, dtype, layout)
                            for key in keys}
    except (SafetensorError, OSError) as error:
        raise MinisdError("the weights cannot be read: the file is damaged or cut off", str(path),
                          str(error)[:200], "copy or download it again") from error
    return {key: tensors[key] for key in wanted}


def _groups(wanted: Shapes) -> Iterator[list[str]]:
    """Keys of about GROUP numbers together; convolutions apart, since they are copied later, when they are laid out."""
    for convolutions in (True, False):
        keys = [key for key, shape in wanted.items() if (len(shape) == 4) == convolutions]
        ends = accumulate(math.prod(wanted[key]) for key in keys)
        for _, group in groupby(zip(keys, ends, strict=True), key=lambda pair: pair[1] // GROUP):
            yield [key for key, _ in group]


def _placed(tensor: Tensor, device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """On the device and in the dtype; in the layout where that takes a copy anyway."""
    stays = tensor.device == device and tensor.dtype == dtype
    if stays or tensor.dim() != 4:
        return tensor.to(device, dtype)
    return tensor.to(device, dtype, memory_format=layout)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise MinisdError("a part of the model is missing", str(path), remedy="copy the whole folder")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise MinisdError("the file is a Git LFS pointer, not the weights", str(path),
                              remedy="run: git lfs pull")


def _check_shapes(found: Shapes, wanted: Shapes, path: Path) -> None:
    faults = [f"missing {key}" for key in wanted if key not in found]
    faults += [f"unknown {key}" for key in found if key not in wanted]
    faults += [f"{key} is {list(found[key])}, should be {list(shape)}"
               for key, shape in wanted.items() if key in found and found[key] != shape]
    if faults:
        more = f" … and {len(faults) - SHOWN_KEYS} more" if len(faults) > SHOWN_KEYS else ""
        raise MinisdError(f"{len(faults)} tensors do not fit the model of {CONFIG}", str(path),
                          "; ".join(faults[:SHOWN_KEYS]) + more,
                          "use the config that was written with these weights")


def _floats(tensor: Tensor, key: str, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        raise MinisdError("weights are not floating-point numbers", str(path), f"{key} is {tensor.dtype}")
    return tensor


def _narrowed(module: nn.Module, dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    state = module.state_dict()
    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in state.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise MinisdError("weights that are not finite are never saved", f"{name}: {key}",
                              f"in {dtype} it holds NaN or infinity", code=NUMERICAL)
    return tensors


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename; a folder that stands there steps aside first, and is deleted last."""
    old = folder.with_name(f".old-{folder.name}-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
