"""Layers that several branches share."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training.networks.branches import BranchLayers  # noqa: E402


@torch.no_grad()
@pytest.mark.parametrize('shared', [True, False])
def test_norms_score_what_they_were_trained_on(shared):
    torch.manual_seed(0)
    # Branches as unlike as colour and depth are.
    maps = [torch.randn(8, 3, 16, 16), 3 + 2 * torch.randn(8, 3, 16, 16)]
    norm = BranchLayers(2, share_norms=shared).norm(3)
    norms = [norm] if shared else list(norm)
    for each in norms:
        each.momentum = 1.0  # what it has seen last is all it knows
    trained = norm.train()(maps)
    scored = norm.eval()(maps)
    torch.testing.assert_close(scored, trained, rtol=1e-3, atol=1e-3)
    for values in [torch.cat(trained)] if shared else trained:
        assert values.mean().item() == pytest.approx(0, abs=1e-3)
        assert values.std().item() == pytest.approx(1, abs=1e-3)
