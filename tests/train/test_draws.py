"""Random numbers belong to the sample: not to the batch, the order, or the run."""

import numpy as np
import torch

from minisd.train.draws import Draws, Purpose, stream


def both(numbers, seed=0):
    draws = Draws(seed, numbers)
    return draws.normal(4, 2, 2), draws.uniform()


def test_a_sample_draws_the_same_in_any_batch_and_order():
    normal, uniform = both([0, 1, 2, 3])
    for numbers in ([3], [2, 0], [1, 3, 2, 0]):
        found = both(numbers)
        assert torch.equal(found[0], normal[numbers]) and torch.equal(found[1], uniform[numbers])


def test_samples_and_seeds_and_purposes_differ():
    firsts = {(seed, n, purpose): stream(seed, n, purpose).standard_normal()
              for seed in (0, 1, 2 ** 64 - 1) for n in (0, 1, 2 ** 40) for purpose in Purpose}
    assert len(set(firsts.values())) == len(firsts)


def test_the_numbers_are_philoxs_and_stay_what_they_are():
    """A change here would make every run that goes on another one."""
    found = stream(7, 5, Purpose.TASK)
    expected = np.random.Generator(np.random.Philox(key=[7, 5 * 4 + 2]))
    assert np.array_equal(found.random(8), expected.random(8))
    assert Draws(0, [0]).uniform().item() == np.float32(stream(0, 0, Purpose.TASK).random(dtype=np.float32))


def test_their_distributions():
    normal, uniform = both(list(range(4000)))
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02
