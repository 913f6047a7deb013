"""Ranks that hold a share each make the run of those that hold everything, and their checkpoints are the same files."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import tiny_model
import torch
from line import CFG, Line, prepared, rows, saved
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from minisd import store
from minisd.errors import DISTRIBUTED
from minisd.fast.passes import quicken
from minisd.sites import Sites
from minisd.train import loop, resume, state
from minisd.train.config import DataConfig, Preview, TrainConfig
from minisd.train.distillation import Place, distill
from minisd.train.experiment import Experiment
from minisd.train.ranks import joined
from minisd.train.replicated import Replicated
from minisd.train.sharded import Sharded
from minisd.train.stages import locked
from minisd.unet import UNet

ROOT = Path(__file__).parents[2]
LINE = replace(CFG, steps=6, batch=2, accumulate=1, save_every=2, preview_every=3)
NET = replace(LINE, steps=4, lr=1e-3, clip=0.5, warmup=0)


@dataclass
class Net:
    """A UNet that learns from its output and from two taps; `events` are called at their steps."""

    events: dict = field(default_factory=dict)

    def __post_init__(self):
        torch.manual_seed(0)
        self.unet = UNet(tiny_model.MODEL.unet).to(memory_format=torch.channels_last)

    def trained(self):
        return self.unet

    def loss(self, batch, draws, step):
        x, noise, text, label = draws.normal(4, 8, 8), draws.normal(4, 8, 8), draws.normal(3, 32), draws.normal(32)
        sites = Sites(keep=("down.0", "up.0"))
        out = self.unet(x.contiguous(memory_format=torch.channels_last), 999 * draws.uniform(), text, label, sites)
        fit = self.events.get(step, lambda loss: loss)((out.float() - noise).square().mean())
        return {"fit": fit, "taps": 0.1 * sum((kept.float() - 1).square().mean() for kept in sites.kept.values())}

    @torch.no_grad()
    def preview(self, folder, step):
        """As tasks do it: laid out to draw with, and then measured."""
        assert type(self.unet) is UNet and not any(isinstance(p, DTensor) for p in self.unet.parameters())
        quicken(self.unet)
        torch.manual_seed(1)
        given = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 500.0]), torch.randn(2, 3, 32), torch.randn(2, 32)
        self.events.get("preview", lambda: None)()
        return {"drawn": self.unet(*given).square().mean().item()}

    def export(self, folder):
        pass


def trained(folder, cfg, task, holding=Sharded, after=lambda run: None):
    """One rank's way through a run."""
    with joined() as ranks, locked(folder, ranks):
        run = prepared(folder, cfg, task, {}, partial(holding, ranks=ranks))
        resume.resume(run, "auto")
        loop.fit(run)
        after(run)


def alone(folder, cfg, task):
    """What one process makes of the passes of two."""
    trained(folder, replace(cfg, accumulate=2), task, Replicated)


@pytest.fixture
def two(ranks):
    """Runs a task on two ranks that hold a share each."""
    def run(folder, cfg, task=Line, other=None, **options):
        return ranks(*(partial(trained, folder, cfg, made(), **options) for made in (task, other or task)))
    return run


def apart(a, b, step, part):
    """The distance of two checkpoints' tensors of a kind, all together, and the second's norm.

    FSDP2 makes a node of its own of what goes into a block, so the three gradients that meet at a skip are summed as
    a + (b + c) and not as (a + b) + c; all that lies before it in the network is then rounded otherwise.
    """
    one, two = (load_file(folder / f"checkpoint-{step}" / f"{part}.safetensors") for folder in (a, b))
    assert one.keys() == two.keys() and all(one[name].shape == two[name].shape for name in one)
    both = [(one[name].float(), two[name].float()) for name in one if not name.endswith(":step")]
    return [torch.stack([x.norm() for x in every]).norm().item() for every in ([x - y for x, y in both],
                                                                               [y for _, y in both])]


# --- the same run ---


def test_where_nothing_is_summed_in_another_order_every_bit_is_the_same(two, ranks, tmp_path):
    """One rank has the layer's only row, the other has none; losses, weights, average, moments."""
    assert two(tmp_path / "sharded", LINE) == [0, 0]
    assert ranks(*(partial(trained, tmp_path / "whole", LINE, Line(), Replicated) for _ in range(2))) == [0, 0]
    alone(tmp_path / "one", LINE, Line())
    assert saved(tmp_path / "sharded") == saved(tmp_path / "whole") == saved(tmp_path / "one")
    assert rows(tmp_path / "sharded") == rows(tmp_path / "whole") == rows(tmp_path / "one")


@pytest.mark.parametrize("options", [{}, {"recompute": True, "accumulate": 2}])
def test_a_unet_learns_the_same_but_for_rounding(two, tmp_path, options):
    cfg = replace(NET, **options)
    assert two(tmp_path / "two", cfg, Net) == [0, 0]
    trained(tmp_path / "one", replace(cfg, accumulate=2 * cfg.accumulate), Net(), Replicated)
    for a, b in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert a.keys() == b.keys() and a == pytest.approx(b, rel=1e-5)
    for part, bar in (("params", 1e-6), ("ema", 1e-6), ("optimizer", 1e-5)):     # moments are gradients: see `apart`
        distance, norm = apart(tmp_path / "two", tmp_path / "one", 4, part)
        assert distance <= bar * norm, part


class OtherBits(Replicated):
    """Rounded by other random bits."""

    def seed(self, seed):
        return seed + 1


def test_rounded_bfloat16_weights_learn_the_same_but_for_the_bits_that_they_are_rounded_by(two, tmp_path):
    """Ranks draw for their rows by themselves: they end as near to one process's as that does with another seed."""
    cfg = replace(NET, dtype="bf16", weights="bf16")
    assert two(tmp_path / "two", cfg, Net) == [0, 0]
    alone(tmp_path / "one", cfg, Net())
    trained(tmp_path / "other", replace(cfg, accumulate=2), Net(), OtherBits)
    for part in ("params", "ema"):
        two_one, other_one = (apart(tmp_path / name, tmp_path / "one", 4, part)[0] for name in ("two", "other"))
        assert 0.5 * other_one < two_one < 1.5 * other_one, part
    assert load_file(tmp_path / "two" / "checkpoint-4" / "ema.safetensors")["conv_in.weight"].dtype == torch.bfloat16


def test_shares_of_the_terms_are_those_of_the_whole_gradient(two, tmp_path):
    cfg = replace(NET, steps=2, shares_every=2, preview_every=0)
    assert two(tmp_path / "two", cfg, Net) == [0, 0]
    trained(tmp_path / "one", replace(cfg, batch=4), Net(), Replicated)
    for a, b in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert rows(tmp_path / "two")[1]["share/taps"] > 0.1


# --- checkpoints ---


def test_a_run_goes_on_on_another_number_of_ranks(two, tmp_path):
    assert two(tmp_path / "x", replace(LINE, steps=2)) == [0, 0]
    alone(tmp_path / "x", replace(LINE, steps=4), Line())
    assert two(tmp_path / "x", LINE) == [0, 0]
    alone(tmp_path / "one", LINE, Line())
    assert saved(tmp_path / "x") == saved(tmp_path / "one")
    assert [row["fit"] for row in rows(tmp_path / "x") if "fit" in row] == [
        row["fit"] for row in rows(tmp_path / "one") if "fit" in row]


def test_three_ranks_hold_uneven_rows_of_what_one_has_written(ranks, tmp_path):
    """16 rows are 6, 6 and 4, and 4 rows 2, 2 and 0; what they save is what they were given, to the bit."""
    made = prepared(tmp_path, NET, Net(), {})
    for p in made.state.params.values():
        p.grad = torch.randn_like(p)
    made.state.optimizer.step()
    made.state.step = 3
    path = state.commit(tmp_path, made.state, 2, {})

    def again():
        with joined() as these:
            run = prepared(tmp_path / "again", NET, Net(), {}, partial(Sharded, ranks=these))
            run.state.restore(path)
            assert run.state.params["conv_out.bias"].shape[0] == (2, 2, 0)[these.rank]
            loop.save(run)

    assert ranks(again, again, again) == [0, 0, 0]
    assert saved(tmp_path / "again", 3) == saved(tmp_path, 3)


def test_each_rank_holds_half(ranks, tmp_path):
    def held(run):
        mine = {part: sum(t.nbytes for t in tensors.values()) for part, tensors in run.state.tensors().items()}
        module = [p.to_local() for p in run.task.unet.parameters()]
        shared = {t.untyped_storage().data_ptr() for t in module if t.numel()}
        assert shared == {p.untyped_storage().data_ptr() for p in run.state.params.values() if p.numel()}
        mine["module"] = sum(t.untyped_storage().nbytes() for t in module)
        (tmp_path / f"{run.ranks.rank}.json").write_text(json.dumps(mine))

    cfg = replace(NET, steps=1)
    assert ranks(*(partial(trained, tmp_path / "x", cfg, Net(), after=held) for _ in range(2))) == [0, 0]
    whole = sum(p.numel() * p.element_size() for p in Net().unet.parameters())
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for part, copies in (("params", 1), ("ema", 1), ("module", 1), ("optimizer", 2)):
            assert found[part] / whole / copies == pytest.approx(0.5, abs=0.02), part


# --- what happens on one rank ---


def spoiled():
    return Line({1: lambda task, fit: fit * float("nan")})


def failing():
    return Line({"preview": lambda task: 1 / 0})


def dying():
    return Line({3: lambda task, fit: os.kill(os.getpid(), signal.SIGKILL)})


def test_numbers_that_are_not_finite_on_one_rank_are_skipped_by_all(two, tmp_path):
    assert two(tmp_path / "two", LINE, Line, spoiled) == [0, 0]
    alone(tmp_path / "one", LINE, spoiled())
    assert saved(tmp_path / "two") == saved(tmp_path / "one") and rows(tmp_path / "two")[1]["skipped"] == 1


def test_a_preview_that_fails_ends_no_run(two, tmp_path):
    assert two(tmp_path / "two", LINE, failing) == [0, 0]
    alone(tmp_path / "one", LINE, Line())
    assert saved(tmp_path / "two") == saved(tmp_path / "one")


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_rank_ends_the_others_with_their_own_code(two, tmp_path, capfd, dead):
    codes = two(tmp_path, LINE, *((dying, Line) if dead == 0 else (Line, dying)))
    assert codes[dead] == 256 - signal.SIGKILL and codes[1 - dead] == DISTRIBUTED
    assert "another rank is gone" in capfd.readouterr().err


# --- distillation ---


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """On a tiny teacher, with all terms, a preview and the shares of the terms."""
    train = TrainConfig(steps=2, batch=1, accumulate=1, lr=1e-3, warmup=0, dtype="fp32", save_every=1, preview_every=2,
                        log_every=1, shard=True)
    shown = Preview(("a red square",), steps=1, guidance=2.0)
    teacher = tiny_model.folder(tmp_path_factory.mktemp("teacher"))
    return Experiment("x", str(teacher), train=train, data=DataConfig(size=64), preview=shown)


def same_but_for_rounding(two, one):
    """Losses, measures of the averaged weights before and after, and the student that is taken home."""
    for a, b in zip(rows(two), rows(one), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert sum("held_out/features" in row for row in rows(two)) == 2
    distance, norm = apart(two, one, 2, "params")
    assert distance <= 1e-6 * norm
    assert store.load(two / "model").unet.cfg == store.load(one / "model").unet.cfg
    for name in ("0000000.png", "0000002.png"):
        assert (two / "samples" / name).is_file()


def test_a_student_is_distilled_measured_shown_and_taken_home(experiment, ranks, pictures, tmp_path, capfd):
    two, one = (Place(pictures, tmp_path / name, tmp_path / "cache") for name in ("two", "one"))
    alike = replace(experiment, train=replace(experiment.train, accumulate=2))
    distill(alike, one, "auto")
    assert "one process holds everything, there is nothing to shard" in capfd.readouterr().out
    assert ranks(*[partial(distill, experiment, two, "auto")] * 2) == [0, 0]
    assert "sharded over 2 ranks: this one holds" in capfd.readouterr().out
    same_but_for_rounding(two.out, one.out)


@pytest.mark.slow
def test_the_program_started_by_torchrun_and_gone_on_with_alone(experiment, pictures, tmp_path):
    two, one = (Place(pictures, tmp_path / name, tmp_path / "cache") for name in ("two", "one"))
    recipe = tmp_path / "x.json"
    recipe.write_text(json.dumps(asdict(experiment)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "minisd.distill", str(recipe), "--data", str(pictures), "--out", str(two.out), "--max-steps", "1"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "sharded over 2 ranks" in done.stdout, done.stderr[-2000:]
    alike = replace(experiment, train=replace(experiment.train, accumulate=2))
    for place in (two, one):
        distill(alike, place, "auto")
    distance, norm = apart(two.out, one.out, 2, "params")
    assert distance <= 1e-6 * norm and len(rows(two.out)) == 5      # step 1 was once the last, and looked at
    assert store.load(two.out / "model").unet.cfg == store.load(one.out / "model").unet.cfg
