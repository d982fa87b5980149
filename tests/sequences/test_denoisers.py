"""Networks on sequences: written out a second time, on relaxed states, with adapters, on disk."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from diffreward.random import stream
from diffreward.sequences.denoisers import ConvDenoiser, TransformerDenoiser

V, LENGTH = 4, 12


def conv(**settings: object) -> ConvDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden": 8, "stacks": 2, "dilations": (1, 4), "kernel": 3}
        return ConvDenoiser(vocab_size=V, **(shape | settings)).eval()


def transformer(**settings: object) -> TransformerDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden": 8, "layers": 2, "heads": 2, "max_length": LENGTH}
        return TransformerDenoiser(vocab_size=V, **(shape | settings)).eval()


BOTH = pytest.mark.parametrize("build", [conv, transformer])
Build = Callable[..., nn.Module]


def states(rows: int = 3) -> Tensor:
    return torch.randint(V + 1, (rows, LENGTH), generator=stream(0, "states"))


def size(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_the_default_network_has_the_papers_size() -> None:
    """Golden: 3.33 M, of which those of a time that the papers set to zero are 0.35 M."""
    with torch.device("meta"):
        assert size(ConvDenoiser(time_conditioning=True)) == 3_326_468
        assert size(ConvDenoiser()) == 2_979_716


def test_the_convolutional_network_is_that_of_the_paper() -> None:
    """Written with sequences (B, C, L), as in its source."""
    network = conv()
    x = F.one_hot(states(), V + 1).float().transpose(1, 2)
    assert [block.conv.dilation[1] for block in network.blocks] == [1, 1, 4, 4]

    def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
        shape = {"padding": layer.padding[1], "dilation": layer.dilation[1]}
        return F.conv1d(x, layer.weight[:, :, 0], layer.bias, **shape)

    x = convolved(x, network.conv_in).relu()
    for block in network.blocks:
        x = x + convolved(block.norm(x.transpose(1, 2)).transpose(1, 2), block.conv).relu()
    x = convolved(convolved(x, network.conv_mid).relu(), network.conv_out)
    torch.testing.assert_close(network(states()).logits, x.transpose(1, 2))


def test_convolutions_take_any_length_and_see_as_far_as_they_reach() -> None:
    """1 + 1 + 1 + 4 + 4 places to each side."""
    network, state = conv(), torch.full((1, 40), V)
    other = state.clone()
    other[0, 20] = 1
    seen = (network(state).logits != network(other).logits).any(-1)[0].nonzero().flatten()
    assert (seen.min(), seen.max()) == (9, 31)


@BOTH
def test_one_hot_weights_are_the_ids(build: Build) -> None:
    network = build()
    weights = F.one_hot(states(), V + 1)
    for dtype in (torch.float32, torch.float64):
        found = network(weights.to(dtype)).logits
        torch.testing.assert_close(found, network(states()).logits)
    assert found.shape == (3, LENGTH, V) and found.dtype == torch.float32


@BOTH
def test_gradients_reach_relaxed_states(build: Build) -> None:
    weights = torch.rand(2, LENGTH, V + 1, generator=stream(0, "w")).requires_grad_()
    direction = torch.randn(weights.shape, generator=stream(0, "direction"))
    network = build().double()
    network(weights.double()).logits[0, 3, 1].backward()
    with torch.no_grad():
        step = 1e-3 * direction.double()
        up, down = (network(weights.double() + s).logits[0, 3, 1] for s in (step, -step))
    slope = (weights.grad * direction).sum()
    torch.testing.assert_close(slope.item(), ((up - down) / 2e-3).item(), rtol=2e-2, atol=1e-4)
    assert (weights.grad[0] != 0).any(0).all() and (weights.grad[1] == 0).all()


@BOTH
def test_rows_do_not_see_each_other(build: Build) -> None:
    network = build()
    torch.testing.assert_close(network(states()[1:2]).logits, network(states()).logits[1:2])


@BOTH
def test_time_enters_if_it_is_asked_for_and_not_otherwise(build: Build) -> None:
    agnostic, aware = build(), build(time_conditioning=True)
    times = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(agnostic(states(), times).logits, agnostic(states()).logits)
    found = aware(states(), times).logits
    torch.testing.assert_close(found[1], aware(states(), 0.5).logits[1])
    assert not torch.allclose(found[1], aware(states(), 0.6).logits[1], atol=1e-4)
    with pytest.raises(ValueError, match="conditioned on time"):
        aware(states())


@BOTH
def test_checkpointing_changes_no_gradient(build: Build) -> None:
    plain, frugal = build(time_conditioning=True), build(time_conditioning=True)
    frugal.enable_gradient_checkpointing()
    for network in (plain, frugal):
        network.train()
        network(states(), 0.3).logits.square().sum().backward()
    for ours, theirs in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@BOTH
def test_a_network_comes_back_from_its_folder(build: Build, tmp_path) -> None:
    network = build(time_conditioning=True)
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    assert torch.equal(loaded(states(), 0.3).logits, network(states(), 0.3).logits)
    assert loaded.config.vocab_size == V and loaded.config.hidden == 8


@BOTH
def test_half_precision_gives_whole_logits(build: Build) -> None:
    network = build(time_conditioning=True).to(torch.bfloat16)
    logits = network(states(), 0.3).logits
    assert logits.dtype == torch.float32
    exact = build(time_conditioning=True)(states(), 0.3).logits
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("build", "targets", "adapters"),
    [(conv, ["conv"], 4), (transformer, ["to_q", "to_k", "to_v", "to_out.0"], 8)],
)
def test_adapters_attach_by_name_and_begin_as_nothing(build, targets, adapters) -> None:
    network = build()
    before = network(states()).logits
    config = LoraConfig(r=2, target_modules=targets)
    inject_adapter_in_model(config, network)
    assert sum("lora_B" in name for name, _ in network.named_parameters()) == adapters
    assert torch.equal(network(states()).logits, before)
    network(states()).logits.square().sum().backward()
    trained = [w for name, w in network.named_parameters() if "lora_B" in name]
    assert all((weight.grad != 0).any() for weight in trained)
    with torch.no_grad():
        for weight in trained:
            weight.copy_(weight.grad)
    adapted = network(states()).logits
    assert not torch.allclose(adapted, before, atol=1e-2)
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    torch.testing.assert_close(network(states()).logits, adapted)


@BOTH
def test_adapters_of_diffusers_attach_too(build: Build) -> None:
    network = build()
    network.add_adapter(LoraConfig(r=2, target_modules=["conv", "to_q"]))
    assert network.active_adapters() == ["default"]


@BOTH
def test_what_is_no_state_is_refused(build: Build) -> None:
    network = build()
    for wrong in (
        torch.zeros(2, LENGTH),
        torch.zeros(2, LENGTH, V),
        torch.zeros(2, LENGTH, V + 1, dtype=torch.int64),
    ):
        with pytest.raises(ValueError, match=r"\(B, L, 5\)"):
            network(wrong)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        conv(kernel=4)
    with pytest.raises(ValueError, match="multiple of heads"):
        transformer(heads=3)
    with pytest.raises(ValueError, match="has 12"):
        transformer()(torch.zeros(1, LENGTH + 1, dtype=torch.int64))


@BOTH
def test_a_tuple_comes_back_if_it_is_asked_for(build: Build) -> None:
    network = build()
    (logits,) = network(states(), return_dict=False)
    assert torch.equal(logits, network(states()).logits)
