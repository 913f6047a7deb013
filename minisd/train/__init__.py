"""Training: one loop, many tasks. To read it, begin with `loop` and one file of `tasks`; the rest serves these.

The loop     `loop` makes the steps. `state` is what survives a kill, `resume` where a run goes on, `ranks` several
             processes on one run, `draws` random numbers that belong to the sample. Beside it `optim`, `gradients`,
             `interrupts`, `report`.
The tasks    `tasks`: what is minimised, a file for each; `objective` asks a denoiser, `perceptual` judges pictures.
The data     `rows` reads a folder, `shards` tar files, `captions` words alone. `data` orders and crops what they give,
             by `buckets` and their `plan`; `encoded` makes latents of it, `imagined` has the teacher draw it, `cache`
             keeps both. `datacheck` looks at a folder beforehand.
The recipes  `config` for stages of training, `experiment` for distillation: what TOML files say, checked without torch.
The programs `stages` makes runs of the loop out of the first (`python -m minisd.train`), `distillation` out of the
             second (`python -m minisd.distill`).
"""
