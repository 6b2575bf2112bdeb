from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_gba import sparse_autoencoder_ops as ops
from sae_lens_gba.sparse_autoencoder_ops import (
    ActiveSet,
    SparseDecode,
    SparseEncode,
    find_active,
    squared_power_mean_error,
)

Problem = dict[str, torch.Tensor]


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="of newer torch"
)
def test_it_is_known_whether_a_gpu_multiplies_in_tf32() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, is_tf32 in (("ieee", False), ("tf32", True)):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert ops._multiplies_in_tf32() is is_tf32
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def problem(batch: int, d_in: int, d_sae: int, threshold: float, seed: int = 0) -> Problem:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "x": normal(batch, d_in).requires_grad_(),
        "W_enc": normal(d_in, d_sae).requires_grad_(),
        "W_dec": normal(d_sae, d_in).requires_grad_(),
        "output_scale": normal(d_sae).requires_grad_(),
        "b_enc": (normal(d_sae) * 0.1).requires_grad_(),
        "threshold": torch.full((d_sae,), threshold, dtype=torch.float64),
    }


def dense_twin(p: Problem, relu: bool) -> torch.Tensor:
    h = p["x"] @ p["W_enc"] + p["b_enc"]
    acts = torch.where(h > (0.0 if relu else p["threshold"]), h, 0.0)
    return (acts * p["output_scale"]) @ p["W_dec"]


def sparse(p: Problem, relu: bool) -> torch.Tensor:
    threshold = None if relu else p["threshold"]
    with torch.no_grad():
        found = find_active(p["x"], p["W_enc"], p["b_enc"], threshold, 1.0)
    assert found is not None
    active, values = found
    hidden_pre = SparseEncode.apply(p["x"], p["W_enc"], p["b_enc"], values, active)
    return SparseDecode.apply(
        active.to_coo(hidden_pre).values(), p["W_dec"], p["output_scale"], active
    )


LEAVES = ("x", "W_enc", "b_enc", "W_dec", "output_scale")


def assert_same(make: Callable[[], Problem], relu: bool) -> None:
    results = []
    for forward in (dense_twin, sparse):
        p = make()
        out = forward(p, relu)
        (out.cos() * torch.arange(1, out.shape[1] + 1)).sum().backward()
        results.append([out.detach(), *(p[name].grad for name in LEAVES)])
    for dense, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("batch", "d_in", "d_sae", "threshold"),
    [
        (5, 3, 7, 1.0),
        (1, 4, 9, 1.0),  # a batch of one
        (6, 4, 9, 1e9),  # all dead
        (6, 4, 9, -1e9),  # all active
        (40, 2, 5, 3.5),  # most rows empty
        (33, 16, 64, 4.0),
    ],
)
def test_sparse_products_agree_with_the_dense_twin(
    batch: int, d_in: int, d_sae: int, threshold: float, relu: bool
) -> None:
    assert_same(lambda: problem(batch, d_in, d_sae, threshold), relu)


def test_chunks_of_rows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "CHUNK_ROWS", 7)
    assert_same(lambda: problem(33, 16, 64, 4.0), relu=False)


def test_non_contiguous_inputs_give_the_same() -> None:
    def make() -> Problem:
        p = problem(12, 6, 10, 1.0)
        for name in ("x", "W_enc", "W_dec"):
            p[name] = p[name].detach().T.contiguous().T.requires_grad_()
            assert not p[name].is_contiguous()
        return p

    assert_same(make, relu=False)


def test_gradcheck_passes() -> None:
    p = problem(4, 3, 6, 0.7)
    leaves = [p[name] for name in LEAVES]

    def forward(*tensors: torch.Tensor) -> torch.Tensor:
        return sparse({**p, **dict(zip(LEAVES, tensors, strict=True))}, relu=False)

    assert torch.autograd.gradcheck(forward, leaves)


def test_tied_weights_get_both_gradients() -> None:
    grads = []
    for forward in (dense_twin, sparse):
        p = problem(12, 6, 10, 1.0)
        W = p["W_dec"]
        forward({**p, "W_enc": W.T}, relu=False).square().sum().backward()
        grads.append(W.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-10)


def test_a_dense_batch_is_left_to_dense_products() -> None:
    p = problem(8, 4, 10, -1e9)
    assert find_active(p["x"], p["W_enc"], p["b_enc"], p["threshold"], 0.5) is None


def test_an_encoder_whose_input_needs_no_gradient_is_not_kept() -> None:
    p = problem(12, 6, 10, 1.0)
    p["x"] = p["x"].detach()
    kept: list[torch.Tensor] = []

    def note(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        sparse(p, relu=False)
    pointers = {t.data_ptr() for t in kept if not t.is_sparse}
    assert p["x"].data_ptr() in pointers and p["W_enc"].data_ptr() not in pointers


def test_autocast_casts_the_encoder_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "CHUNK_ROWS", 3)
    p = {name: t.detach().float() for name, t in problem(12, 6, 10, 1.0).items()}
    arguments = (p["x"], p["W_enc"], p["b_enc"], p["threshold"], 1.0)
    casts = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "_to_copy" in func.name() and args[0].shape == p["W_enc"].shape:
                casts.append(func)
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Casts():
        found = find_active(*arguments)
    assert len(casts) == 1
    assert found is not None
    h = (p["x"].bfloat16() @ p["W_enc"].bfloat16()).float() + p["b_enc"]
    expected = torch.where(h > p["threshold"], h, 0.0)
    assert torch.equal(found[0].to_coo(found[1]).to_dense(), expected)


def test_half_precision_takes_sparse_products_in_float32() -> None:
    def at(dtype: torch.dtype) -> list[torch.Tensor]:
        p = {name: t.detach().bfloat16().to(dtype) for name, t in problem(12, 6, 10, 1.0).items()}
        for name in LEAVES:
            p[name].requires_grad_()
        p["output_scale"] = p["output_scale"].detach().float().requires_grad_()
        with torch.no_grad():
            found = find_active(
                p["x"].float(), p["W_enc"].float(), p["b_enc"].float(), p["threshold"].float(), 1.0
            )
        assert found is not None
        active, values = found
        acts = SparseEncode.apply(p["x"], p["W_enc"], p["b_enc"], values.to(dtype), active)
        out = SparseDecode.apply(acts, p["W_dec"], p["output_scale"], active)
        assert out.dtype == dtype
        out.sum().backward()
        return [out.detach(), *(g for name in LEAVES if (g := p[name].grad) is not None)]

    for half, full in zip(at(torch.bfloat16), at(torch.float32), strict=True):
        torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.1)


def test_a_bias_of_many_samples_has_all_of_their_gradient_in_half_precision() -> None:
    n = 2000
    active = ActiveSet(torch.arange(n), torch.zeros(n, dtype=torch.long), n, 1)
    x, W_enc = torch.ones(n, 1).bfloat16(), torch.ones(1, 1).bfloat16()
    b_enc = torch.zeros(1, requires_grad=True)
    SparseEncode.apply(x, W_enc, b_enc, torch.ones(n).bfloat16(), active).sum().backward()
    assert b_enc.grad is not None
    assert float(b_enc.grad) == n


def test_nothing_of_batch_times_d_sae_is_kept_for_backward() -> None:
    p = problem(64, 8, 128, 5.0)
    kept = []

    def note(t: torch.Tensor) -> torch.Tensor:
        kept.append(t._nnz() if t.is_sparse else t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        sparse(p, relu=False)
    assert max(kept) <= 128 * 8 < 64 * 128


def test_bands_split_the_pattern_by_latent_and_keep_its_entries() -> None:
    # latents 0-2 are a band, 3-5 another
    active = ActiveSet(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 3, 5, 1, 4]), 2, 6)
    bands, order = active.in_bands(torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert bands.samples.tolist() == [0, 1, 2, 2, 3]  # (band 0, samples 0 1), (band 1, samples 0 1)
    assert bands.latents.tolist() == [0, 1, 3, 5, 4]
    assert order.tolist() == [0, 3, 1, 2, 4]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_the_error_is_a_power_mean_of_the_samples_norms(exponent: float, scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    target, preds = torch.randn(2, 16, 5, generator=g, dtype=torch.float64) * scale
    preds.requires_grad_()
    norms = (preds - target).norm(dim=1)
    expected = norms.pow(exponent).mean().pow(2 / exponent)
    got = squared_power_mean_error(preds, target, exponent).sum(dim=-1).mean()
    torch.testing.assert_close(got, expected)
    (gradient,) = torch.autograd.grad(got, preds)
    torch.testing.assert_close(gradient, *torch.autograd.grad(expected, preds))


def test_a_sample_without_error_gives_a_gradient_of_zero() -> None:
    target = torch.eye(3)
    preds = target.clone()
    preds[0] += 1
    preds.requires_grad_()
    squared_power_mean_error(preds, target, 0.5).sum(dim=-1).mean().backward()
    assert preds.grad is not None
    assert preds.grad[0].norm() > 0
    torch.testing.assert_close(preds.grad[1:], torch.zeros(2, 3))
