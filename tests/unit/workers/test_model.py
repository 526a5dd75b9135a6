import torch

from decentral.workers.lm.model import GPT, ModelConfig

SMALL = ModelConfig(d_model=32, num_layers=2, num_heads=2, context=16)


def _model(config: ModelConfig = SMALL, seed: int = 0) -> GPT:
    return GPT(config, torch.Generator().manual_seed(seed))


def _trained(config: ModelConfig = SMALL) -> GPT:
    """A model whose layers all have a say: fresh ones add nothing to the residual stream."""
    model, generator = _model(config), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def _bytes(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


def test_parameters_are_counted_without_building() -> None:
    for tied in (True, False):
        config = ModelConfig(d_model=32, num_layers=3, num_heads=2, tie_embeddings=tied)
        assert sum(parameter.numel() for parameter in _model(config).parameters()) == config.num_parameters


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(5)
    first = _model().state_dict()
    torch.manual_seed(6)
    second = _model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding"], _model(seed=1).embedding)


def test_no_position_sees_a_later_one() -> None:
    model, bytes_BT = _trained(), _bytes(2, 16)
    changed_BT = bytes_BT.clone()
    changed_BT[:, 10] = (changed_BT[:, 10] + 1) % 256
    before, after = model(bytes_BT), model(changed_BT)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-6)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-4)


def test_positions_matter() -> None:
    model = _trained()
    forwards, backwards = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(forwards[0, -1], backwards[0, -1], atol=1e-4)


def test_a_fresh_model_adds_nothing_to_the_residual_stream() -> None:
    model, bytes_BT = _model(), _bytes(1, 8)
    alone = torch.cat([model(bytes_BT[:, index : index + 1]) for index in range(8)], dim=1)
    assert torch.allclose(model(bytes_BT), alone, atol=1e-6)


def test_generation_with_cached_keys_draws_what_full_passes_would() -> None:
    model = _trained()
    prompt = b"def f"
    drawn = model.generate(prompt, 10, temperature=1.0, top_k=1, generator=torch.Generator())
    text = list(prompt)
    for _ in range(10):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    assert drawn == bytes(text[len(prompt) :])


def test_generation_goes_on_beyond_the_context_and_repeats_by_seed() -> None:
    model = _model()

    def draw(seed: int) -> bytes:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(b"x" * 40, 50, temperature=1.0, top_k=256, generator=generator)

    assert len(draw(0)) == 50
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
