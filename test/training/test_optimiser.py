from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.config import GroupConfig, OptimiserConfig  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network  # noqa: E402
from rgbd_fusion_seg.training.networks.cen import ChannelExchange  # noqa: E402
from rgbd_fusion_seg.training.optimiser import (  # noqa: E402
    WeightAverage,
    build_optimiser,
    learning_rate,
    parameter_groups,
    set_learning_rates,
)


def test_poly_warms_up_and_decays():
    config = OptimiserConfig(lr=0.1, warmup=0.2, power=0.5)
    rates = [learning_rate(p, config) for p in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.05)
    assert rates[60] == pytest.approx(0.1 * 0.5**0.5)
    assert rates[100] == 0.0
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))


def test_the_very_first_step_moves_the_weights():
    config = OptimiserConfig(lr=0.1, warmup=0.2)
    assert learning_rate(0.0, config) == pytest.approx(1e-4)
    assert learning_rate(0.1, config) == pytest.approx(0.05)


def test_poly_may_end_above_nothing():
    """AdapNet++'s public code: tf.train.polynomial_decay from 1e-3 to 1e-4 by the power 0.9."""
    config = OptimiserConfig(lr=1e-3, end_lr=1e-4, warmup=0, power=0.9)
    rates = [learning_rate(p, config) for p in (0, 0.5, 1)]
    assert rates == pytest.approx([1e-3, 0.9e-3 * 0.5**0.9 + 1e-4, 1e-4])


def test_steps_equal_those_of_torch():
    config = OptimiserConfig(lr=0.2, schedule='step', milestones=[0.3, 0.8], gamma=0.5, warmup=0)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=[3, 8], gamma=0.5)
    for step in range(10):
        assert learning_rate(step / 10, config) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()


def test_a_constant_rate_stays():
    config = OptimiserConfig(lr=0.3, schedule='constant', warmup=0.1)
    assert {learning_rate(p, config) for p in (0.1, 0.5, 1.0)} == {0.3}
    assert learning_rate(0.05, config) == pytest.approx(0.15)


def test_weight_decay_spares_norms_and_biases():
    network = build_network('erfnet_encoder', 5)
    network.linear = torch.nn.Linear(3, 2)
    groups = parameter_groups(network, OptimiserConfig(weight_decay=0.5))
    for group in groups:
        expected = 0.5 if group['params'][0].ndim > 1 else 0.0
        assert group['weight_decay'] == expected
        assert len({p.ndim > 1 for p in group['params']}) == 1
    assert sum(len(g['params']) for g in groups) == len(list(network.parameters()))


def test_weight_decay_spares_gates_of_channels():
    """Those of sums are one a channel, as scales of norms are."""
    network = ChannelExchange(2, 4, 'gated_sum')
    (group,) = parameter_groups(network, OptimiserConfig(weight_decay=0.1))
    assert group['weight_decay'] == 0


def test_groups_learn_at_their_own_pace():
    network = build_network('erfnet_encoder', 5)
    config = OptimiserConfig(
        lr=0.01,
        schedule='constant',
        weight_decay=0.5,
        # The first that matches, wins.
        groups=[GroupConfig(r'^head\.', 10.0, 0.1), GroupConfig(r'\.bn|^head', 0.0)],
    )
    optimiser = build_optimiser(network, config)
    set_learning_rates(optimiser, 0.5, config)
    rate = {
        id(p): (g['lr'], g['weight_decay']) for g in optimiser.param_groups for p in g['params']
    }
    for name, parameter in network.named_parameters():
        lr, decay = rate[id(parameter)]
        if name == 'head.weight':
            assert (lr, decay) == (pytest.approx(0.1), 0.1)
        elif '.bn' in name:
            assert (lr, decay) == (0.0, 0.0)
        elif parameter.ndim > 1:
            assert (lr, decay) == (pytest.approx(0.01), 0.5)


def test_a_group_may_be_without_decay():
    network = build_network('erfnet_encoder', 5)
    config = OptimiserConfig(weight_decay=0.5, groups=[GroupConfig(r'^head\.', weight_decay=0.0)])
    decay = {
        id(p): group['weight_decay']
        for group in parameter_groups(network, config)
        for p in group['params']
    }
    for name, parameter in network.named_parameters():
        spared = name.startswith('head.') or parameter.ndim == 1
        assert decay[id(parameter)] == (0.0 if spared else 0.5), name


PUBLIC = OptimiserConfig(
    name='sgd', lr=5e-4, weight_decay=1e-2, decay_all=True, schedule='step', warmup=0, ema=0,
    milestones=[1 / 3, 2 / 3], gamma=[0.5, 0.4],
    groups=[GroupConfig('^head', lr_scale=6, gamma=[0.5, 7 / 15])],
)  # fmt: skip
"""CEN's, with a decay that 30 steps show."""


def test_groups_step_as_two_optimisers_do():
    """The public code of CEN has one for the encoder and one for the decoder."""
    rates = {'encoder': (5e-4, 2.5e-4, 1e-4), 'head': (3e-3, 1.5e-3, 7e-4)}
    ours = torch.nn.ModuleDict(
        {
            name: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
            for name in rates
        }
    )
    theirs = copy.deepcopy(ours)
    optimiser = build_optimiser(ours, PUBLIC)
    both = {
        name: torch.optim.SGD(theirs[name].parameters(), lr=1, momentum=0.9, weight_decay=1e-2)
        for name in rates
    }
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        if step == 17:  # a run that is continued has a new optimiser
            state, optimiser = optimiser.state_dict(), build_optimiser(ours, PUBLIC)
            optimiser.load_state_dict(state)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        set_learning_rates(optimiser, step / 30, PUBLIC)
        optimiser.step()
        for name, single in both.items():
            single.param_groups[0]['lr'] = rates[name][step // 10]
            single.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    'changes', [{'gamma': [0.5]}, {'groups': [GroupConfig('head', gamma=[0.5, 0.5, 0.5])]}]
)
def test_there_is_a_gamma_for_each_milestone(changes):
    with pytest.raises(InputError, match='a gamma for each of milestones'):
        OptimiserConfig(schedule='step', **changes)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'groups': [GroupConfig('nothing_like_this')]}, 'matches none'),
        ({'groups': [GroupConfig('(')]}, 'no regular expression'),
    ],
)
def test_settings_that_cannot_be_are_named(changes, words):
    with pytest.raises(InputError, match=words):
        build_optimiser(build_network('erfnet_encoder', 5), OptimiserConfig(**changes))


@pytest.mark.parametrize(('name', 'kind'), [('adamw', 'AdamW'), ('adam', 'Adam'), ('sgd', 'SGD')])
def test_the_named_optimiser_steps(name, kind):
    layer = torch.nn.Conv2d(1, 1, 1)
    optimiser = build_optimiser(layer, OptimiserConfig(name=name, lr=0.1))
    assert type(optimiser).__name__ == kind
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 1, 1, 1)).sum().backward()
    optimiser.step()
    assert float((layer.weight - before).abs().max()) > 0.01


def test_the_momentum_of_sgd_is_that_of_the_settings():
    config = OptimiserConfig(name='sgd', lr=1.0, momentum=0.5, weight_decay=0)
    layer = torch.nn.Conv2d(1, 1, 1, bias=False)
    optimiser, before = build_optimiser(layer, config), float(layer.weight.detach())
    for moved in (1.0, 2.5, 4.25):  # by 1, 1 + 0.5 and 1 + 0.5 + 0.25 more
        layer.weight.grad = torch.ones_like(layer.weight)
        optimiser.step()
        assert before - float(layer.weight.detach()) == pytest.approx(moved, abs=1e-5)


@pytest.mark.parametrize('name', ['adamw', 'adam', 'sgd'])
def test_one_task_updates_all_parameters_where_it_is_wished(name):
    layer, config = torch.nn.Conv2d(1, 1, 1), OptimiserConfig(name=name)
    assert build_optimiser(layer, config, fused=True).defaults['fused'] is True
    assert build_optimiser(layer, config).defaults['fused'] is None


def test_the_average_equals_torchs_once_it_is_old():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    network = torch.nn.Linear(3, 2)
    ours = WeightAverage(network, 0.9)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(network)  # its first update copies
    for step in range(200, 220):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3))
        ours.update(step)
        theirs.update_parameters(network)
    torch.testing.assert_close(ours.network(network).weight, theirs.module.weight)


def test_a_young_average_follows_the_weights():
    network = torch.nn.Linear(1, 1)
    average = WeightAverage(network, 0.999)
    with torch.no_grad():
        network.weight.fill_(5.0)
    for step in range(20):
        average.update(step)
    assert float(average.network(network).weight) == pytest.approx(5.0, abs=0.01)


def test_the_decay_of_a_young_average_is_that_of_its_steps():
    network = torch.nn.Linear(1, 1, bias=False)
    average, expected = WeightAverage(network, 0.2), float(network.weight.detach())
    for step, decay in enumerate((1 / 10, 2 / 11, 0.2, 0.2)):
        with torch.no_grad():
            network.weight.fill_(step + 5.0)
        average.update(step)
        expected = decay * expected + (1 - decay) * (step + 5.0)
        ours = average.network(network).weight
        assert float(ours.detach()) == pytest.approx(expected, rel=1e-5)


def test_running_statistics_are_averaged_as_torch_averages_them():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    ours = WeightAverage(network, 0.9)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(network)  # its first update copies
    for step in range(200, 220):
        network(step + torch.randn(4, 1, 8, 8))
        ours.update(step)
        theirs.update_parameters(network)
    result = ours.network(network)
    assert not result.training
    for name in ('running_mean', 'running_var'):
        averaged, newest = (getattr(net[1], name) for net in (result, network))
        torch.testing.assert_close(averaged, getattr(theirs.module[1], name))
        assert not torch.allclose(averaged, newest)
    assert result[1].num_batches_tracked == network[1].num_batches_tracked
