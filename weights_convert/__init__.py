"""Checkpoints of the Stable Diffusion family, between the names and layouts in which the field's tools write them.

Each such way is a dialect. `tables` says, as data, what every tensor is called in each; `translate` carries a state
dict from one to another through our own names.
"""
