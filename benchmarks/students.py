"""What distillation wins back, on the embedded model: `python benchmarks/students.py --data FOLDER` trains, measures,
and prints the tables of the README.

`--times` measures the time of a step alone, for which the machine should be quiet, and needs no data.

It runs the recipes exp0001, exp0002, bk-tiny, bk-base and bk-small as `python -m minisd.distill` does, and an ablation
of bk-small's loss at fewer updates. Everything is resumed: stop it at any moment and start it again. A student is
compared with its teacher and with the same student untrained: error of the prediction on held-out pairs, SSIM of
pictures from the same noise, Fréchet distance and CLIP score by the teacher's own CLIP.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from speed import cpu
from torch import Tensor

from minisd import store, surgery
from minisd.config import UNetConfig
from minisd.evaluate import exam
from minisd.evaluate.clip_score import clip_score, load_judge
from minisd.evaluate.fidelity import errors, inspect, won_back
from minisd.evaluate.frechet import frechet
from minisd.evaluate.measures import view
from minisd.evaluate.protocol import protocol_hash
from minisd.evaluate.questions import questions
from minisd.evaluate.sensitivity import macs, milliseconds, parameters
from minisd.evaluate.similarity import ssim
from minisd.fast.passes import quicken
from minisd.files import put
from minisd.images import to_tensor
from minisd.labels import table as labelled
from minisd.pipeline import StableDiffusion
from minisd.train.distillation import Place, distill
from minisd.train.experiment import EMBEDDED, Experiment, read
from minisd.unet import UNet

RESULTS = Path(__file__).parent / "results"
NAMES = ("exp0001", "exp0002", "bk-tiny", "bk-base", "bk-small")
ABLATED, UPDATES = "bk-small", 150
ABLATION = {
    "noise": {"output": 0.0, "features": 0.0},
    "noise-output": {"features": 0.0},
    "all-three": {},
    "normalised": {"normalised": True},
    "random-conditioning": {"random_captions": 5.0},
}
SAMPLES, PICTURES, BATCH, SHOWN = 256, 128, 8, 6
ROUNDS = 60                                       # steps that are timed, of each network


@dataclass(frozen=True)
class Drawn:
    """Measures of pictures; Fréchet distances are of CLIP features."""

    ssim: float                                   # with the teacher's pictures of the same prompts and noise
    frechet: float                                # to held-out pictures
    frechet_teacher: float                        # to the teacher's pictures
    clip_score: float


@dataclass(frozen=True)
class Row:
    """A network beside the teacher, as it is measured."""

    name: str
    parameters: int
    macs: int                                     # of one call for one picture
    milliseconds: float                           # of a step, the median; taken again at the end of a run
    error: float                                  # mean squared difference to the teacher's prediction, held-out pairs
    bands: tuple[float, ...]                      # of it, by quarters of the timesteps
    won: tuple[float, float, float] | None        # share of the untrained student's error, and its interval of 95 %
    drawn: Drawn | None                           # not of the ablation
    weights: str                                  # beginning of the sha256 of what was measured
    protocol: str


class Course:
    """The teacher, and what all are asked."""

    def __init__(self, data: Path, cache: Path):
        self.exact, self.sd = (store.load(EMBEDDED, "cpu", dtype) for dtype in ("float32", "auto"))
        folder = store.find(EMBEDDED)
        self.asked = questions(self.exact, data, SAMPLES, cache)
        self.judge, self.exam = load_judge(folder), exam.choose(data, read("exp0001").data.styles, PICTURES)
        self.held_out = self.judge.pictures(exam.pixels(self.exam.held_out, self.sd.cfg.size))
        self.protocol = {**self.asked.protocol(), "teacher": store.fingerprint(folder)[:16], "pictures": PICTURES,
                         "questions": exam.fingerprint(question.real for question in self.exam.questions)[:16],
                         "drawing": asdict(self.sd.defaults), "dtype": str(self.sd.dtype), "seeds": "0, 1, ..."}
        self.hash = protocol_hash(self.protocol)

    @cached_property
    def drawn(self) -> Tensor:
        """By the teacher."""
        return self.pictures(self.exact.unet)

    def draw(self, unet: UNet, prompts: Sequence[str]) -> list[Image.Image]:
        """Picture n has seed n, in the precision that a user of this machine gets."""
        low = UNet(unet.cfg).to(self.sd.dtype).eval().requires_grad_(False)
        low.load_state_dict(unet.state_dict())
        model = replace(self.sd, unet=low, cfg=replace(self.sd.cfg, unet=unet.cfg))
        drawings = [model.drawing(prompt, seed=n) for n, prompt in enumerate(prompts)]
        return [picture for group in model.batches(drawings, BATCH) for picture in model.draw(group)]

    def pictures(self, unet: UNet) -> Tensor:
        """The exam's: [n, 3, h, w]."""
        return torch.stack(list(map(to_tensor, self.draw(unet, [one.prompt for one in self.exam.questions]))))

    def judged(self, unet: UNet) -> Drawn:
        drawn = self.drawn if unet is self.exact.unet else self.pictures(unet)
        seen, wanted = view(self.judge, self.exam, drawn), self.judge.pictures(self.drawn)
        return Drawn(ssim(drawn, self.drawn).mean().item(), frechet(seen.pictures, self.held_out),
                     frechet(seen.pictures, wanted), clip_score(seen.cosines).mean().item())

    def measured(self, name: str, unet: UNet, weights: str) -> Row:
        after = inspect(self.exact.unet, unet, self.asked)
        before = inspect(self.exact.unet, untrained(self.exact, unet.cfg), self.asked)
        figures = errors(before, after, self.asked.bands)
        mine = [figure.value for figure in figures if figure.what == "student"]
        won = won_back("", before.error, after.error) if unet.cfg != self.exact.unet.cfg else None
        return Row(name, parameters(unet.cfg), macs(unet.cfg, tuple(self.asked.x.shape[2:])),
                   milliseconds(unet, self.asked), mine[0], tuple(mine[1:]),
                   None if won is None or won.interval is None else (won.value, *won.interval),
                   None if name.startswith(f"{ABLATED}-") else self.judged(unet), weights, self.hash)


def untrained(sd: StableDiffusion, cfg: UNetConfig) -> UNet:
    return surgery.transplant(sd.unet, cfg).requires_grad_(False)


def times(sd: StableDiffusion) -> dict[int, list[float]]:
    """Milliseconds of a step by the number of parameters: the teacher and every student in turns, so that the machine's
    moods strike all alike. A step is a call for a picture and its guidance, as `minisd.generate` makes it."""
    whole = sd.unet.cfg
    cfgs = {parameters(cfg): cfg for cfg in (whole, *(surgery.student(whole, one.student.remove)
                                                      for one in experiments()))}
    unets = {count: quicken(untrained(sd, cfg).to(sd.dtype).eval()) for count, cfg in cfgs.items()}
    gen, side = torch.Generator().manual_seed(0), sd.cfg.size // sd.cfg.vae.factor
    x, label = (torch.randn(2, *shape, generator=gen).to(sd.dtype) for shape in ((4, side, side), (whole.label_dim,)))
    context = torch.randn(2, sd.cfg.text[0].window, whole.context_dim, generator=gen).to(sd.dtype)
    took: dict[int, list[float]] = {count: [] for count in unets}
    for _, (count, unet) in product(range(ROUNDS + 3), unets.items()):
        start = perf_counter()
        with torch.inference_mode():
            unet(x, torch.tensor([500, 500]), context, label)
        took[count].append(1000 * (perf_counter() - start))
    return {count: calls[3:] for count, calls in took.items()}  # the first warm up


def timed(rows: dict[str, Row]) -> tuple[dict[str, Row], dict[str, Any]]:
    """The rows with their times, and how and where those were taken."""
    sd = store.load(EMBEDDED, "cpu", "auto")
    took = times(sd)
    teacher = took[max(took)]
    ratios = {count: median(a / b for a, b in zip(teacher, calls, strict=True)) for count, calls in took.items()}
    for count, ratio in ratios.items():
        print(f"{count:,} parameters: {median(took[count]):.2f} ms a step, {ratio:.2f} times as fast as the teacher")
    how = {"step": f"a picture and its guidance, {sd.dtype}; medians of {ROUNDS} in turns", "machine": cpu(),
           "threads": torch.get_num_threads(),
           "times as fast": {f"{count:,} parameters": ratio for count, ratio in ratios.items()}}
    return {name: replace(row, milliseconds=median(took[row.parameters])) for name, row in rows.items()}, how


def experiments() -> list[Experiment]:
    """The recipes, and the ablation."""
    base = read(ABLATED)
    short = replace(base, train=replace(base.train, steps=UPDATES), preview=replace(base.preview, prompts=()))
    return [*map(read, NAMES), *(replace(short, name=f"{ABLATED}-{word}", distill=replace(base.distill, **change))
                                 for word, change in ABLATION.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--data", type=Path, help="the folder that minisd.recipes.emoji_data has made")
    wanted.add_argument("--times", action="store_true", help="take the times of a step alone anew")
    parser.add_argument("--runs", type=Path, default=Path("runs/students"), help="where the runs are (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "students.json", help="the figures (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some experiments only")
    options = parser.parse_args()
    if options.times:
        before = {row.name: row for row in kept(options.out)}
        rows, how = timed(before)
        write(options.out, rows, json.loads(options.out.read_text(encoding="utf-8"))["protocol"], how)
        return
    course = Course(options.data, options.runs / "cache")
    rows = {row.name: row for row in kept(options.out) if row.protocol == course.hash}

    def measure(name: str, weights: str, unet: UNet) -> None:
        """One row, unless it is there."""
        if name not in rows or rows[name].weights != weights:
            rows[name] = course.measured(name, unet, weights)
            write(options.out, rows, course.protocol)

    teacher = store.fingerprint(store.find(EMBEDDED))[:16]
    measure("teacher", teacher, course.exact.unet)
    for experiment in experiments():
        if options.only and experiment.name not in options.only:
            continue
        place = Place(options.data, options.runs / experiment.name, options.runs / "cache")
        distill(experiment, place, "auto")
        student = store.load(place.out / "model", "cpu", "float32").unet
        measure(f"without {' and '.join(experiment.student.remove)}", teacher, untrained(course.exact, student.cfg))
        measure(experiment.name, store.fingerprint(place.out / "model")[:16], student)
    rows, how = timed(rows)
    write(options.out, rows, course.protocol, how)
    print(table(rows, NAMES), table(rows, [f"{ABLATED}-{word}" for word in ABLATION]), sep="\n\n")
    if set(NAMES) <= set(rows):
        grid(course, options.runs).save(options.out.with_suffix(".png"), optimize=True)


def write(path: Path, rows: dict[str, Row], protocol: dict[str, Any], how: dict[str, Any] | None = None) -> None:
    """The figures; `how` the times were taken, where it is known."""
    put(path, json.dumps({"protocol": protocol, "times": how or {}, "rows": [asdict(row) for row in rows.values()]},
                         indent=1) + "\n")


def kept(path: Path) -> list[Row]:
    """Rows of an earlier run."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return [Row(**row | {"drawn": row["drawn"] and Drawn(**row["drawn"])}) for row in rows]


HEAD = ("UNet", "parameters", "GMACs", "ms", "error", "won back")
DRAWN = ("SSIM", "Fréchet, real", "won back", "Fréchet, teacher's", "won back", "CLIP score")


def table(rows: dict[str, Row], names: Sequence[str]) -> str:
    """Markdown: the teacher, and every student below itself untrained."""
    shown = [rows["teacher"]]
    for name in (name for name in names if name in rows):
        shown += [row for row in (before_of(rows, rows[name]), rows[name]) if row is not None and row not in shown]
    if any(rows[name].drawn is None for name in names if name in rows):
        shown = [replace(row, drawn=None) for row in shown]
    head = HEAD if shown[-1].drawn is None else HEAD + DRAWN
    rule = "|".join(["---"] + ["---:"] * (len(head) - 1))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(line(rows, row) for row in shown)])


def before_of(rows: dict[str, Row], row: Row) -> Row | None:
    """The same network untrained, of a student; None where it was not measured."""
    if row.name == "teacher" or row.name.startswith("without"):
        return None
    return next((one for one in rows.values() if one.name.startswith("without")
                 and one.parameters == row.parameters), None)


def line(rows: dict[str, Row], row: Row) -> str:
    cells = [row.name, f"{row.parameters:,}", f"{row.macs / 1e9:.3f}", f"{row.milliseconds:.1f}", f"{row.error:.4f}"]
    if (before := before_of(rows, row)) and row.won is not None:
        cells.append(f"**{row.won[0]:.0%}** ({row.won[1]:.0%} to {row.won[2]:.0%})")
    else:
        cells.append("")
    if row.drawn is not None:
        cells += [f"{row.drawn.ssim:.3f}", f"{row.drawn.frechet:.4f}", won_of(rows["teacher"], before, row, "frechet"),
                  f"{row.drawn.frechet_teacher:.4f}", won_of(rows["teacher"], before, row, "frechet_teacher"),
                  f"{row.drawn.clip_score:.3f}"]
    return f"| {' | '.join(cells)} |"


def won_of(teacher: Row, before: Row | None, row: Row, name: str) -> str:
    """The share of what the surgery added to a distance that is gone again."""
    if before is None:
        return ""
    best, worst, found = (vars(one.drawn)[name] for one in (teacher, before, row))
    return f"**{(worst - found) / (worst - best):.0%}**"


def grid(course: Course, runs: Path) -> Image.Image:
    """Six prompts of the recipes by the teacher and by every student, untrained and trained."""
    prompts = read("exp0001").preview.prompts[:SHOWN]
    columns, above = [course.draw(course.exact.unet, prompts)], ["teacher"]
    for name in NAMES[1:]:
        student = store.load(runs / name / "model", "cpu", "float32").unet
        columns += [course.draw(unet, prompts) for unet in (untrained(course.exact, student.cfg), student)]
        above += [f"{name}: untrained", f"{name}: student"]
    return labelled(list(zip(*columns, strict=True)), above, prompts)


if __name__ == "__main__":
    main()
