"""Facts about running a network once more."""

from copy import deepcopy

import torch
from observations import draws
from torch import nn

from potstill.stages.knowledge.rerun import differentiable, only_real_numbers, rerun


def network(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=momentum), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )


def test_leaves_no_trace_in_buffers_and_modes() -> None:
    model = network(momentum=None).train()  # the mean over all batches, for which the batches are counted
    before, modes = deepcopy(model.state_dict()), [module.training for module in model.modules()]
    rerun(model, {"image": 5 + draws(8, 1, 4, 4, dtype=torch.float32)}).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


def test_gives_what_a_plain_forward_gives_and_trains_the_same() -> None:
    model, plain = network().train(), network().train()
    image = draws(8, 1, 4, 4, dtype=torch.float32)
    mine, expected = rerun(model, {"image": image}), plain(image)
    torch.testing.assert_close(mine, expected)
    mine.square().sum().backward()
    expected.square().sum().backward()
    for left, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)


def test_a_forward_of_before_can_still_be_differentiated() -> None:
    """Statistics that are written back in place would spoil what autograd has kept of it."""
    model, image = network().train(), draws(8, 1, 4, 4, dtype=torch.float32)
    first = model(image)
    (first.sum() + rerun(model, {"image": image + 1}).sum()).backward()
    assert model[0].weight.grad is not None


def test_copies_of_inputs_ask_for_gradients() -> None:
    inputs = {"image": draws(2, 3)}
    assert differentiable(inputs)["image"].requires_grad
    assert not inputs["image"].requires_grad
    assert only_real_numbers(inputs)
    assert not only_real_numbers({"tokens": torch.zeros(2, 3, dtype=torch.int64)})
