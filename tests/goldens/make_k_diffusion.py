"""Writes k_diffusion.safetensors: where k-diffusion's samplers end, from fixed noise, on the toy network of toy.py.

    pip install k-diffusion==0.1.1.post1 --no-deps --target FOLDER
    PYTHONPATH=FOLDER python tests/goldens/make_k_diffusion.py

Only its sampling.py and external.py are loaded, with empty modules for what they import and do not use here
(torchvision, torchsde, torchdiffeq, clip and others): no sampler is touched.  Everything is in float64.  Seeds: 3 the
network's, 11 the noise's.  Each tensor is the end of one walk, named "sampler, spacing, prediction"; the metadata
hold the versions and how often each walk asked the network.
"""
import importlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from toy import noise_list, toy_unet  # noqa: E402

from minisd.samplers.schedule import NoiseTable  # noqa: E402

SHAPE = (1, 4, 3, 3)
CHURN = {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}
# Name -> k-diffusion's function, its arguments.
SAMPLERS: dict[str, tuple[str, dict[str, object]]] = {
    "euler": ("sample_euler", {}), "euler churn": ("sample_euler", CHURN),
    "euler a": ("sample_euler_ancestral", {}), "euler a eta 0.5": ("sample_euler_ancestral", {"eta": 0.5}),
    "heun": ("sample_heun", {}), "heun churn": ("sample_heun", CHURN),
    "dpm2": ("sample_dpm_2", {}), "dpm2 churn": ("sample_dpm_2", CHURN),
    "dpm2 a": ("sample_dpm_2_ancestral", {}), "lms": ("sample_lms", {}),
    "dpm++2s a": ("sample_dpmpp_2s_ancestral", {}), "dpm++sde": ("sample_dpmpp_sde", {}),
    "dpm++sde at a third": ("sample_dpmpp_sde", {"r": 1 / 3}), "dpm++2m": ("sample_dpmpp_2m", {}),
    "dpm++2m sde": ("sample_dpmpp_2m_sde", {}), "dpm++2m sde heun": ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpm++3m sde": ("sample_dpmpp_3m_sde", {}), "dpm++3m sde eta 0.5": ("sample_dpmpp_3m_sde", {"eta": 0.5}),
}
WITH_NOISE_SAMPLER = ("ancestral", "sde")
COUNTS = {"karras": 12, "exponential": 7}
FAST = (5, 6, 7, 12)                                # calls of the network: 0, 1 and 2 left over of groups of three
ADAPTIVE = (2, 3)                                   # orders


def load() -> SimpleNamespace:
    """k-diffusion's sampling and external, past its package's own imports."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("k-diffusion is not on the path: see the head of this file")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    stubs = {name: ModuleType(name) for name in (
        "torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchsde", "torchdiffeq")}
    stubs["torchvision.transforms"].functional = stubs["torchvision.transforms.functional"]
    stubs["torchdiffeq"].odeint = None
    sys.modules |= {"k_diffusion": package, **stubs}
    return SimpleNamespace(sampling=importlib.import_module("k_diffusion.sampling"),
                           external=importlib.import_module("k_diffusion.external"))


class Recorder:
    """Runs k-diffusion's samplers on the toy network, told what it predicts."""

    def __init__(self, k: SimpleNamespace, prediction: str) -> None:
        names = {"epsilon": "DiscreteEpsDDPMDenoiser", "v": "DiscreteVDDPMDenoiser"}
        alphas_cumprod = torch.from_numpy(NoiseTable().alphas_cumprod.copy())
        self.unet, self.calls, self.sampling = toy_unet(), 0, k.sampling
        self.model = getattr(k.external, names[prediction])(self.network, alphas_cumprod, False)
        self.low, self.high = (float(sigma) for sigma in self.model.sigmas[[0, -1]])

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.unet(x, t)

    def walks(self) -> Iterator[tuple[str, Tensor, int]]:
        """Name, end and calls of every walk."""
        x = noise_list(1, SHAPE)[0] * self.high
        for name, (function, options) in SAMPLERS.items():
            for word, n in COUNTS.items():
                sigmas = getattr(self.sampling, f"get_sigmas_{word}")(n, self.low, self.high)
                yield f"{name}, {word}", self.stepped(function, options, x, sigmas), self.counted()
        for n in FAST:
            yield f"dpm fast {n}", self.sampling.sample_dpm_fast(
                self.model, x, self.low, self.high, n, disable=True, noise_sampler=no_noise), self.counted()
        for order in ADAPTIVE:
            yield f"dpm adaptive {order}", self.sampling.sample_dpm_adaptive(
                self.model, x, self.low, self.high, order=order, disable=True, noise_sampler=no_noise), self.counted()

    def stepped(self, function: str, options: dict[str, object], x: Tensor, sigmas: Tensor) -> Tensor:
        """Noise is the next of the list: at every step where it is churn, at every use elsewhere."""
        fresh = iter(noise_list(100, SHAPE)[1:])
        if any(word in function for word in WITH_NOISE_SAMPLER):
            options = {**options, "noise_sampler": lambda *_: next(fresh)}
        self.sampling.torch = SimpleNamespace(**{**vars(torch), "randn_like": lambda _: next(fresh)})
        return getattr(self.sampling, function)(self.model, x, sigmas, disable=True, **options)

    def counted(self) -> int:
        """Calls since the last time."""
        calls, self.calls = self.calls, 0
        return calls


def no_noise(*_: object) -> float:
    return 0.0


def main() -> None:
    torch.set_default_dtype(torch.float64)
    k = load()
    found = {f"{name}, {prediction}": (end, calls) for prediction in ("epsilon", "v")
             for name, end, calls in Recorder(k, prediction).walks()}
    versions = {name: importlib.metadata.version(name) for name in ("k-diffusion", "torch")}
    save_file({name: end.contiguous() for name, (end, _) in found.items()}, HERE / "k_diffusion.safetensors",
              metadata={"versions": json.dumps(versions), "seeds": json.dumps({"network": 3, "noise": 11}),
                        "calls": json.dumps({name: calls for name, (_, calls) in found.items()})})
    print(f"{len(found)} walks")


if __name__ == "__main__":
    main()
