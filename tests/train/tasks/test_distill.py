"""The distillation task: its three terms in closed form, its options, and what it shows."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from tiny_model import MODEL, modules

from minisd import surgery
from minisd.errors import USAGE, MinisdError
from minisd.pipeline import StableDiffusion
from minisd.train.config import DataConfig, Preview
from minisd.train.data import Pictures
from minisd.train.draws import Draws
from minisd.train.encoded import Encoded, Words
from minisd.train.experiment import DistillTask
from minisd.train.tasks import distill as module
from minisd.train.tasks.distill import Distill

NUMBERS = [0, 1, 2, 3]
SHOWN = Preview(("a red square", "a blue disc"), steps=2, guidance=2.0)


@pytest.fixture
def task(pictures, tmp_path):
    def make(removed=("midless",), prediction="v", shown=SHOWN, **options):
        made = modules()
        cfg = replace(MODEL, prediction=prediction)
        sd = StableDiffusion(cfg, made["unet"], made["vae"], (made["text"],))
        left = surgery.student(cfg.unet, removed)
        student = surgery.transplant(sd.unet, left)
        with torch.no_grad():                      # as if it had learnt already
            for p in student.parameters() if removed else ():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        data, held_out = (Encoded(Pictures(pictures, DataConfig(size=64), 3, split), sd.vae, None, tmp_path / "cache")
                          for split in ("train", "holdout"))
        return Distill(replace(cfg, unet=left), DistillTask(**{"teacher_dtype": "fp32"} | options), sd, student, data,
                       held_out, Words(sd.text[0], tmp_path / "cache"), shown, 3, 5, 2)
    return make


def loss(task, step=0, numbers=NUMBERS):
    return task.loss(task.data.batch(numbers), Draws(3, numbers), step)


def asked_by_hand(made, t_of=lambda u: (1000 * u).long()):
    """The question once more: noise and timesteps from the draws in their order."""
    batch, draws, cfg = made.data.batch(NUMBERS), Draws(3, NUMBERS), made.cfg
    x0 = cfg.latent_scale * (batch.latents.mean + (batch.latents.logvar / 2).exp() * draws.normal(4, 8, 8))
    noise, t = draws.normal(4, 8, 8), t_of(draws.uniform())
    alpha_bar = torch.tensor(cfg.noise.alphas_cumprod)[t][:, None, None, None].float()
    x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0
    states = [made.words(caption) for caption in batch.captions]
    return x, t, {"v": v, "epsilon": noise}[cfg.prediction], [torch.stack(each) for each in zip(*states, strict=True)]


def hooked(unet, *question):
    """The answer, and the last output of every down and up stage, by hooks on the modules."""
    found, hooks = [], []
    for stage in (*unet.down, *unet.up):
        last = stage.downsample or stage.upsample or (stage.attn[-1] if len(stage.attn) else stage.res[-1])
        hooks.append(last.register_forward_hook(lambda _, __, out: found.append(out)))
    out = unet(*question)
    for hook in hooks:
        hook.remove()
    return out, found


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_three_terms_are_bk_sdms(task, prediction):
    """Computed once more with hooks in place of Sites."""
    made = task(prediction=prediction, noise=2.0, output=3.0, features=0.5)
    x, t, target, (hidden, pooled) = asked_by_hand(made)
    out, mine = hooked(made.student, x, t, hidden, pooled)
    answer, theirs = hooked(made.teacher, x, t, hidden, pooled)
    assert len(mine) == len(theirs) == len(made.pairs) == 4
    expected = {"noise": 2 * F.mse_loss(out, target), "output": 3 * F.mse_loss(out, answer),
                "features": 0.5 * sum(F.mse_loss(a, b) for a, b in zip(mine, theirs, strict=True))}
    found = loss(made)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name
    relative = sum(F.mse_loss(a, b) / b.square().mean() for a, b in zip(mine, theirs, strict=True))
    assert loss(task(prediction=prediction, normalised=True))["features"].item() == pytest.approx(relative.item(),
                                                                                                  rel=1e-4)


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(task):
    made = task(removed=())
    found = loss(made)
    assert found["output"].item() == found["features"].item() == 0 and found["noise"].item() > 0
    assert set(made.pairs) == {"down.0.downsample", "down.1", "mid", "up.0", "up.1"}


def test_only_the_student_has_gradients_and_means_are_float32_in_bfloat16_too(task):
    made = task(teacher_dtype="bf16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(made)
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.stack(list(found.values())).sum().backward()
    assert all(p.grad is not None for p in made.student.parameters())
    assert not any(p.requires_grad for p in made.teacher.parameters())
    assert {p.dtype for p in made.teacher.parameters()} == {torch.bfloat16}
    exact = loss(task(teacher_dtype="fp32"))
    assert all(found[name].item() == pytest.approx(exact[name].item(), rel=0.1) for name in exact)


def test_a_term_without_weight_is_not_computed(task, monkeypatch):
    made = task(output=0.0, features=0.0)
    monkeypatch.setattr(Distill, "answer", lambda *_: pytest.fail("the teacher is not needed"))
    assert loss(made).keys() == {"noise"}


def test_weights_go_in_a_line_to_the_last_step(task):
    made = task(features=1.0, features_last=0.0, output=2.0)
    first, middle, last = (loss(made, step) for step in (0, 2, 4))
    assert middle["features"].item() == pytest.approx(first["features"].item() / 2) and last["features"].item() == 0
    assert first["output"].item() == last["output"].item() == pytest.approx(2 * loss(task())["output"].item(), rel=1e-5)
    assert DistillTask(noise=0.0, noise_last=1.0).terms() == ("noise", "output", "features")


def test_other_captions_come_with_their_probability(task):
    """exp(-5 (1 - t / 1000)) at each timestep, of all captions of the data."""
    made, numbers = task(random_captions=5.0), list(range(4000))
    for t, probability in ((999, 0.995), (800, 0.368), (0, 0.0067)):
        paired, captions = made.other_captions(["own"] * 4000, torch.full((4000,), t), 5.0, Draws(3, numbers))
        share = 1 - paired.float().mean().item()
        assert share == pytest.approx(probability, abs=0.025)
        assert [caption == "own" for caption in captions] == paired.tolist()
    assert set(captions) <= {"own", *made.data.captions}


def test_other_captions_have_no_part_in_the_noise_term(task):
    """lambda 0: always others; lambda without end: never."""
    always, never, plain = task(random_captions=0.0), task(random_captions=1e9), task()
    assert loss(always)["noise"].item() == 0 and loss(always)["output"].item() > 0
    assert loss(never)["noise"].item() == pytest.approx(loss(plain)["noise"].item(), rel=1e-5)


def test_captions_are_left_out(task):
    made = task(empty_captions=1.0)
    asked = made.ask(made.data.batch(NUMBERS), Draws(3, NUMBERS), 1.0, None)
    assert all(torch.equal(hidden, made.empty.hidden) for hidden in asked.hidden) and asked.paired.all()
    assert loss(made)["noise"].item() != pytest.approx(loss(task())["noise"].item(), rel=1e-4)


@pytest.mark.parametrize("pairs, words", [({"down.9": "down.0"}, "down.9 is none"), ({"up.0": "down.0"}, "up.0 ")])
def test_pairs_that_cannot_be_compared(task, pairs, words):
    with pytest.raises(MinisdError, match="sites that cannot be compared") as error:
        task(pairs=pairs)
    assert error.value.code == USAGE and words in error.value.why


def test_pairs_of_the_recipe(task):
    assert loss(task(pairs={"conv_in": "conv_in"}, normalised=True))["features"].item() < 0.1


def test_the_sheet_and_the_measures(task, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "pick_dtype", lambda name, device: torch.float32)
    made = task()
    measures = made.preview(tmp_path / "samples", 7)
    assert Image.open(tmp_path / "samples" / "0000007.png").width == 6 * 68 - 4
    assert measures.keys() == {"held_out/noise", "held_out/output", "held_out/features", *(
        f"feature/{site}" for site in ("down.0.downsample", "down.1", "up.0", "up.1"))}
    assert measures == made.measure()
    monkeypatch.setattr(Distill, "draw_untrained", lambda _: pytest.fail("it was drawn before"))
    made.preview(tmp_path / "samples", 8)
    columns = [Image.open(tmp_path / "samples" / "references" / f"{name}.png") for name in ("teacher", "untrained")]
    assert [column.size for column in columns] == [(64, 132)] * 2
    expected = made.sd.txt2img("a blue disc", steps=2, cfg=2.0, sampler="dpm++2m")[0]
    difference = ImageChops.difference(columns[0].crop((0, 68, 64, 132)), expected)
    assert difference.getextrema() <= ((0, 1),) * 3    # other batches round otherwise


def test_a_teacher_beside_itself_measures_zero(task):
    measures = task(removed=(), shown=Preview()).preview(None, 1)
    assert measures["held_out/noise"] > 0
    # The teacher's layers are the quick ones, which add up in another order; the student's learn.
    assert max(value for name, value in measures.items() if name != "held_out/noise") < 1e-10
