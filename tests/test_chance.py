"""Each test begins from the same random state (conftest.py), whichever tests ran before it."""
import random

import numpy as np
import pytest
import torch

import gptlab.batching
import gptlab.sampling
from gptlab.generation import make_generator


@pytest.mark.parametrize('again', range(2))
def test_what_a_test_draws_is_the_same_in_every_run(again):
    "Twice: the first leaves other states behind, which the second must not see"
    assert random.random() == random.Random(0).random()
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('again', range(2))
def test_generators_without_a_seed_are_numbered(again):
    makers = make_generator, gptlab.batching.make_generator, gptlab.sampling.make_generator
    assert [make().initial_seed() for make in makers] == [1, 2, 3]
    assert make_generator(7).initial_seed() == 7
