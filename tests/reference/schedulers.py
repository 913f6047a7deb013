"""diffusers' schedulers on Stable Diffusion's noise table, as they are or computing in float64 throughout."""
import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from minisd.samplers.schedule import NoiseTable

TABLE = NoiseTable()

# "module:class" under diffusers.schedulers
DDIM = "scheduling_ddim:DDIMScheduler"
DDPM = "scheduling_ddpm:DDPMScheduler"
PNDM = "scheduling_pndm:PNDMScheduler"
EULER = "scheduling_euler_discrete:EulerDiscreteScheduler"
ANCESTRAL = "scheduling_euler_ancestral_discrete:EulerAncestralDiscreteScheduler"
DPM = "scheduling_dpmsolver_multistep:DPMSolverMultistepScheduler"
SINGLESTEP = "scheduling_dpmsolver_singlestep:DPMSolverSinglestepScheduler"
SDE = "scheduling_dpmsolver_sde:DPMSolverSDEScheduler"
HEUN = "scheduling_heun_discrete:HeunDiscreteScheduler"
LMS = "scheduling_lms_discrete:LMSDiscreteScheduler"
KDPM2 = "scheduling_k_dpm_2_discrete:KDPM2DiscreteScheduler"
KDPM2_ANCESTRAL = "scheduling_k_dpm_2_ancestral_discrete:KDPM2AncestralDiscreteScheduler"
UNIPC = "scheduling_unipc_multistep:UniPCMultistepScheduler"
DEIS = "scheduling_deis_multistep:DEISMultistepScheduler"
LCM = "scheduling_lcm:LCMScheduler"
TCD = "scheduling_tcd:TCDScheduler"

# Parts of their configs
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
LINSPACE = {"timestep_spacing": "linspace"}
NO_CLIP = {"clip_sample": False}
SD15 = {**LEADING, "set_alpha_to_one": False}       # what Stable Diffusion 1.5 ships


class Wide:
    """A module in which the name float32 means float64."""
    def __init__(self, module: Any) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def module_of(reference: str) -> ModuleType:
    """DPMSolverSDE imports torchsde for its own noise only, which is not used here: an empty module will do."""
    if reference == SDE:
        sys.modules.setdefault("torchsde", ModuleType("torchsde"))
    return importlib.import_module("diffusers.schedulers." + reference.split(":")[0])


def widen(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a reference compute in float64 wherever it says float32: its tables, and Euler's and DPM-Solver's steps."""
    monkeypatch.setattr(module_of(reference), "torch", Wide(torch))
    monkeypatch.setattr(module_of(reference), "np", Wide(np))


def scheduler_of(reference: str, prediction: str = "epsilon", **config: object) -> Any:
    words = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
    return getattr(module_of(reference), reference.split(":")[1])(
        beta_start=TABLE.beta_start, beta_end=TABLE.beta_end, beta_schedule="scaled_linear",
        num_train_timesteps=TABLE.steps, prediction_type=words[prediction], **config)
