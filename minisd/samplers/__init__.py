"""Ways to walk from noise to a picture: noise levels, denoisers, solvers, and the recipes that name them.

Everything lives in sigma space, `x = x0 + sigma * noise`.  Read `schedule`, `denoiser`, `loop`, then a solver.
"""
