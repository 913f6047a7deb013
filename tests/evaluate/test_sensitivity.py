"""The table of cuts: counts that are known, errors beside a computation by hand, and the proposal by brute force."""

from itertools import combinations

import pytest
import tiny_model
import torch

from minisd import store, surgery
from minisd.config import PRESETS
from minisd.errors import USAGE, MinisdError
from minisd.evaluate import sensitivity
from minisd.evaluate.questions import questions
from minisd.evaluate.sensitivity import Cut, Survey, macs, parameters, propose, survey, table
from minisd.train.objective import Objective


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_model.folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def found(teacher, data, tmp_path_factory):
    return survey(str(teacher), data, 8, tmp_path_factory.mktemp("cache"))


def test_the_counts_of_sd15():
    """design.md, section 14: 1,606.5 GFLOP for two pictures, 64 x 64 latents; a multiplication is two of them."""
    assert 4 * macs(PRESETS["sd15"], (64, 64)) / 1e9 == pytest.approx(1606.5, abs=0.1)
    assert parameters(PRESETS["sd15"]) == 859_520_964


def test_every_cut_is_measured_alone(found):
    assert [cut.name for cut in found.cuts] == ["mid", "attn.1", "stage.1"]
    assert found.teacher.error == 0 and all(cut.error > 0 and len(cut.bands) == 4 for cut in found.cuts)
    for cut in found.cuts:
        assert cut.parameters < found.teacher.parameters and cut.macs < found.teacher.macs and cut.milliseconds > 0
        assert cut.error == pytest.approx(sum(cut.bands) / 4)              # 2 of 8 samples in each


def test_captions_alone_are_enough(teacher, tmp_path):
    """The teacher is asked about the picture that it draws itself, noised; of x and v that is a x - b v."""
    (tmp_path / "captions.txt").write_text("a red square\n")
    sd = store.load(teacher, "cpu", "float32")
    asked = questions(sd, tmp_path / "captions.txt", 4, tmp_path / "cache")
    likes, last = sd.defaults, []
    sd.draw([sd.drawing("a red square", "", likes.steps, likes.guidance, likes.sampler, 0)],
            lambda x, _: last.append(x) or x)
    sigma = torch.tensor(Objective(sd.cfg.noise, "v").table.sigmas)[asked.t].float()[:, None, None, None]
    x0 = (asked.x - sigma * asked.target) / (1 + sigma ** 2).sqrt()
    torch.testing.assert_close(x0, last[-1].expand_as(x0), rtol=0, atol=2e-6)


def test_errors_by_hand(found, teacher, data, tmp_path):
    sd = store.load(teacher, "cpu", "float32")
    asked = questions(sd, data, 8, tmp_path)
    assert sorted((asked.t // 250).tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    cut = surgery.transplant(sd.unet, surgery.student(sd.unet.cfg, ["mid"]))
    with torch.no_grad():
        errors = [(cut(*one) - sd.unet(*one)).square().mean().item()
                  for one in ((asked.x[n:n + 1], asked.t[n:n + 1], asked.hidden[n:n + 1], asked.label[n:n + 1])
                              for n in range(8))]
    assert found.cuts[0].error == pytest.approx(sum(errors) / 8, rel=1e-4)


def test_the_table_has_the_cheapest_error_first_and_its_protocol(found):
    lines = table(found).splitlines()
    assert lines[1].split()[0] == "teacher" and "protocol" in lines[-1]
    errors = [float(line.split()[8]) for line in lines[2:5]]
    assert errors == sorted(errors)


def made_up(errors):
    cfg = PRESETS["sd15"]
    whole = parameters(cfg)
    cuts = tuple(Cut(name, parameters(surgery.student(cfg, [name])), 1, 1.0, error, (error,) * 4)
                 for name, error in errors.items())
    return Survey(Cut("teacher", whole, 2, 2.0, 0.0, (0.0,) * 4), cuts, cfg, {})


def left_by(found, names):
    """The share of the parameters that cuts leave; 1 where they cannot be made together."""
    try:
        return parameters(surgery.student(found.cfg, names)) / found.teacher.parameters
    except MinisdError:
        return 1.0


def test_the_proposal_is_the_best_of_all_sets():
    errors = {"mid": 1.0, "block.2": 2.0, "block.3": 1.5, "attn.2": 4.0, "stage.3": 3.0}
    found = made_up(errors)
    sets = [names for size in range(1, 6) for names in combinations(errors, size)]
    left = {names: left_by(found, names) for names in sets}
    for budget in (0.9, 0.7, 0.55):
        fitting = [(sum(errors[name] for name in names), names) for names in sets if left[names] <= budget]
        best = min(fitting)
        told = propose(found, budget)
        assert told.startswith("remove = " + str(list(best[1])).replace("'", '"')), budget
        assert f"add up to {best[0]:.3g}" in told


def test_a_budget_that_no_cuts_reach(found):
    with pytest.raises(MinisdError, match="no set of single cuts leaves so little") as error:
        propose(found, 0.001)
    assert error.value.code == USAGE


def test_too_few_samples(teacher, data, tmp_path):
    with pytest.raises(MinisdError, match="--samples 3"):
        sensitivity.survey(str(teacher), data, 3, tmp_path)
