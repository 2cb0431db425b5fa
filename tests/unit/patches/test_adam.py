"""GroupStepAdam is torch's Adam with the step in the group."""

from __future__ import annotations

import copy

import pytest
import torch

from megatron_patches.shared.adam import GroupStepAdam

SHAPES = [(7,), (3, 5), (0,), (4, 2)]


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def groups(params: list[torch.nn.Parameter]) -> list[dict]:
    return [
        {"params": params[:2], "lr": 0.01, "weight_decay": 0.1},
        {"params": params[2:], "lr": 0.002, "betas": (0.5, 0.9)},
        {"params": []},
    ]


def set_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


@pytest.mark.parametrize(("adam_w_mode", "torchs"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_it_is_torchs(adam_w_mode: bool, torchs: type) -> None:
    ours, theirs = parameters(), parameters()
    our_optimizer = GroupStepAdam(groups(ours), lr=0.1, eps=1e-6, adam_w_mode=adam_w_mode)
    their_groups = [group for group in groups(theirs) if group["params"]]
    their_optimizer = torchs(their_groups, lr=0.1, eps=1e-6, weight_decay=0.0)
    for step in range(4):
        for params, optimizer in ((ours, our_optimizer), (theirs, their_optimizer)):
            set_gradients(params, step)
            optimizer.step()
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-6)


def test_step_is_in_the_groups_that_have_parameters() -> None:
    params = parameters()
    optimizer = GroupStepAdam(groups(params))
    set_gradients(params, 0)
    optimizer.step()
    optimizer.step()
    assert [group.get("step") for group in optimizer.param_groups] == [2, 2, None]
    assert all(set(state) == {"exp_avg", "exp_avg_sq"} for state in optimizer.state.values())


def test_parameters_without_gradient_stay() -> None:
    params = parameters()
    optimizer = GroupStepAdam(params)
    before = params[0].detach().clone()
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert torch.equal(params[0], before) and params[0] not in optimizer.state


def test_training_continues_after_a_state_dict_round_trip() -> None:
    results = []
    for reload in (False, True):
        params = parameters()
        optimizer = GroupStepAdam(groups(params))
        for step in range(4):
            if reload and step == 2:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = GroupStepAdam(groups(params))
                optimizer.load_state_dict(state)
            set_gradients(params, step)
            optimizer.step()
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_closures_are_refused() -> None:
    with pytest.raises(ValueError, match="closure"):
        GroupStepAdam(parameters()).step(lambda: 0.0)
