"""The bound is exact where the denoiser is, and training finds the law of its sequences."""

import json
import math
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from diffreward.cli import main
from diffreward.enumeration import sequences
from diffreward.loading import load_pipeline
from diffreward.random import stream
from diffreward.sequences.bound import corrupt, estimate, negative_elbo, stratified
from diffreward.sequences.data import Corpus
from diffreward.sequences.denoisers import ConvDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.pretraining import pretrain, rows_of_update
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.sequences.settings import Pretraining
from diffreward.stopping import Stopped

LAW = torch.tensor([0.30, 0.02, 0.08, 0.05, 0.25, 0.03, 0.02, 0.10, 0.15], dtype=torch.float64)
"""Of two symbols out of three, the first leading."""


class ExactDenoiser(nn.Module):
    """The conditional laws of a joint law, by summing over all sequences.

    Args:
        law: (V^L,).
        symbols: V.
        length: L.
    """

    def __init__(self, law: Tensor, symbols: int, length: int) -> None:
        super().__init__()
        self.log_law = nn.Parameter(law.log())
        self.rows, self.symbols = sequences(symbols, length), symbols

    def forward(self, sample: Tensor, timestep: Tensor) -> SimpleNamespace:
        shown = sample[:, None] != self.symbols
        fits = (~shown | (sample[:, None] == self.rows)).all(-1)
        joint = fits * self.log_law.exp()
        one_hot = nn.functional.one_hot(self.rows, self.symbols).double()
        return SimpleNamespace(logits=torch.einsum("bn,nlv->blv", joint, one_hot).log())


@pytest.mark.parametrize("noise", ["log_linear", "cosine"])
def test_the_bound_of_the_exact_denoiser_is_tight_for_every_sequence(noise: str) -> None:
    # Its conditional laws are those of one joint law, so that log p(x) is the sum of the log
    # conditionals in any order of revealing, and the ELBO the mean of that over orders.
    scheduler, denoiser = MaskedDiffusionScheduler(3, noise), ExactDenoiser(LAW, 3, 2)
    n, rows = 4000, sequences(3, 2)
    clean = rows.repeat_interleave(n, 0)
    bounds = estimate(denoiser, scheduler, clean, 4, stream(0), rows=9000).view(9, n)
    error = bounds.std(1) / math.sqrt(n)  # below 0.05 nats of 1.2 to 3.9
    assert bool((error < 0.05).all())
    assert bool(((bounds.mean(1) + LAW.log()).abs() < 4 * error).all())


def test_the_bound_of_the_exact_denoiser_is_the_entropy_on_average() -> None:
    scheduler, denoiser = MaskedDiffusionScheduler(3), ExactDenoiser(LAW, 3, 2)
    generator = stream(0)
    clean = sequences(3, 2)[LAW.multinomial(20_000, replacement=True, generator=generator)]
    bounds = estimate(denoiser, scheduler, clean, 4, generator, rows=20_000)
    entropy = -float((LAW * LAW.log()).sum())
    error = float(bounds.std()) / math.sqrt(len(bounds))  # about 0.012 nats of 1.82
    assert error < 0.015 and abs(float(bounds.mean()) - entropy) < 4 * error


def test_the_bound_of_another_denoiser_is_looser_by_the_divergence() -> None:
    # Of a single symbol the ELBO is log q(x): on average the cross-entropy of p and q.
    p, q = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
    generator = stream(1)
    clean = p.multinomial(20_000, replacement=True, generator=generator)[:, None]
    scheduler, denoiser = MaskedDiffusionScheduler(3), ExactDenoiser(q, 3, 1)
    bounds = estimate(denoiser, scheduler, clean, 2, generator, rows=20_000)
    error = float(bounds.std()) / math.sqrt(len(bounds))
    assert error < 0.015 and abs(float(bounds.mean()) + float((p * q.log()).sum())) < 4 * error


def test_what_is_shown_costs_nothing_and_what_is_masked_its_cross_entropy() -> None:
    scheduler, denoiser = MaskedDiffusionScheduler(3), ExactDenoiser(LAW, 3, 2)
    clean, u = torch.tensor([[0, 1], [2, 2], [1, 0]]), torch.tensor([0.5, 0.5, 0.5])
    noisy = torch.tensor([[0, 1], [3, 3], [1, 3]])
    corrupted = corrupt(scheduler, clean, u, stream(0))._replace(noisy=noisy)
    # t = 0.25, and the weight 2 u / t is 4.
    table = LAW.view(3, 3)
    both = -(table.sum(1)[2] * table.sum(0)[2]).log()
    one = -(table[1, 0] / table[1].sum()).log()
    expected = torch.stack([torch.zeros(()), 4 * both.detach(), 4 * one.detach()])
    torch.testing.assert_close(
        negative_elbo(denoiser, clean, corrupted).detach(), expected.float(), rtol=1e-5, atol=1e-6
    )


def test_the_estimate_does_not_depend_on_how_many_rows_go_at_a_time() -> None:
    scheduler, denoiser = MaskedDiffusionScheduler(3), ExactDenoiser(LAW, 3, 2)
    clean = sequences(3, 2)
    few, many = (estimate(denoiser, scheduler, clean, 3, stream(0), rows=n) for n in (2, 100))
    torch.testing.assert_close(few, many)


def test_the_times_of_a_batch_are_spread_evenly() -> None:
    u = stratified(8, stream(0))
    assert bool((u > torch.arange(8) / 8).all()) and bool((u <= (torch.arange(8) + 1) / 8).all())


def test_every_sequence_is_seen_once_before_any_is_seen_again() -> None:
    rows = [rows_of_update(10, update, 4, seed=0) for update in range(1, 11)]
    epochs = torch.cat(rows).view(4, 10)
    assert torch.equal(epochs.sort(1).values, torch.arange(10).expand(4, 10))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(rows_of_update(10, 3, 4, seed=0), rows[2])


def test_a_batch_may_be_larger_than_the_corpus() -> None:
    assert rows_of_update(3, 2, 7, seed=0).bincount().sum() == 7


def chain(n: int) -> Corpus:
    """Two symbols of which the second is the first one in nine of ten sequences."""
    generator = stream(0, "chain")
    first = torch.randint(2, (n,), generator=generator)
    same = torch.rand(n, generator=generator) < 0.9
    rows = torch.stack([first, torch.where(same, first, 1 - first)], 1)
    return Corpus(rows[: n // 2], rows[n // 2 :], "XY", n, {})


def small_pipeline() -> MaskedDiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = ConvDenoiser(2, hidden=8, stacks=1, dilations=(1,), kernel=3)
    return MaskedDiffusionPipeline(denoiser, MaskedDiffusionScheduler(2), "XY", 2)


def settings(output: Path, **more: object) -> Pretraining:
    values = {"updates": 200, "learning_rate": 2e-2, "warmup": 10, "ema_decay": 0.98}
    values |= {"evaluate_every": 100, "checkpoint_every": 100, "mixed_precision": "no"}
    values |= {"rows": 1000}
    return Pretraining(**{"output": str(output), **values, **more})  # type: ignore[arg-type]


def metrics(folder: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_training_finds_the_law_of_its_sequences(tmp_path: Path) -> None:
    found = pretrain(small_pipeline(), chain(4000), settings(tmp_path / "run"))
    p = torch.tensor([0.1, 0.9])
    entropy = math.log(2) - float((p * p.log()).sum())
    # The error, of 2,000 sequences with 8 draws, counts what their choice adds as well.
    assert found.after.error < 0.015
    assert abs(found.after.mean - entropy / 2) < 4 * found.after.error
    assert found.before.mean > found.after.mean + 0.1

    pipe = MaskedDiffusionPipeline.from_pretrained(found.folder)
    drawn = pipe(num_inference_steps=64, num_sequences_per_prompt=2000, generator=stream(1))
    same = sum(a == b for a, b in drawn.sequences) / 2000
    assert abs(same - 0.9) < 0.04  # standard error 0.007, and the network's own

    card = (found.folder / "README.md").read_text()
    assert f"{found.after.mean:.4f}" in card and "4,000 records" in card
    evaluated = [line["update"] for line in metrics(tmp_path / "run") if "measures" in line]
    assert evaluated == [0, 100, 200]


def test_rows_at_a_time_change_nothing_but_rounding(tmp_path: Path) -> None:
    pipes = [small_pipeline(), small_pipeline()]
    for pipe, rows in zip(pipes, (64, 20), strict=True):
        pretrain(pipe, chain(200), settings(tmp_path / str(rows), updates=5, rows=rows))
    one, other = (pipe.denoiser.state_dict() for pipe in pipes)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-5)


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    corpus, kept = chain(200), {"updates": 40, "checkpoint_every": 10, "evaluate_every": 20}
    whole, half = small_pipeline(), small_pipeline()
    pretrain(whole, corpus, settings(tmp_path / "whole", **kept))
    seen = 0

    def interrupt(module: nn.Module, inputs: object) -> None:
        nonlocal seen
        seen += module.training
        if seen == 25 and module.training:
            signal.raise_signal(signal.SIGTERM)

    hook = half.denoiser.register_forward_pre_hook(interrupt)
    with pytest.raises(Stopped):
        pretrain(half, corpus, settings(tmp_path / "half", **kept))
    hook.remove()
    assert metrics(tmp_path / "half")[-1]["update"] == 25
    resumed = small_pipeline()
    pretrain(resumed, corpus, settings(tmp_path / "half", resume="latest", **kept))
    for name, tensor in whole.denoiser.state_dict().items():
        assert torch.equal(tensor, resumed.denoiser.state_dict()[name]), name
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "half")


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    corpus = chain(20)
    other = Corpus(corpus.training, corpus.held_out, "AB", 20, {})
    with pytest.raises(ValueError, match=re.escape("2 symbols of AB, the pipeline is for 2 of XY")):
        pretrain(small_pipeline(), other, settings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="draws"):
        settings(tmp_path, draws=0)
    with pytest.raises(ValueError, match="ema_decay"):
        settings(tmp_path, ema_decay=1.0)


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    pretrain(small_pipeline(), chain(20), settings(tmp_path / "run", updates=1))
    with pytest.raises(FileExistsError, match="resume"):
        pretrain(small_pipeline(), chain(20), settings(tmp_path / "run", updates=1))
    with pytest.raises(ValueError, match="another run"):
        pretrain(small_pipeline(), chain(30), settings(tmp_path / "run", resume="latest"))


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    pipe = small_pipeline()
    with torch.no_grad():
        pipe.denoiser.conv_out.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="learning rate"):
        pretrain(pipe, chain(20), settings(tmp_path / "run"))


def arguments(tmp_path: Path, *more: str) -> list[str]:
    """Of a command that trains on 60 sequences of 12 bases, at the work of a second."""
    drawn = torch.randint(4, (60, 12), generator=stream(0)).tolist()
    records = [f">{i}\n" + "".join("ACGT"[j] for j in row) + "\n" for i, row in enumerate(drawn)]
    (tmp_path / "x.fa").write_text("".join(records))
    given = ["pretrain", "--sequences", str(tmp_path / "x.fa"), "--alphabet", "ACGT"]
    given += ["--output", str(tmp_path / "run"), "--updates", "2", "--crop", "2:", "--draws", "2"]
    given += ["--denoiser.hidden", "8", "--denoiser.stacks", "1", "--mixed_precision", "no"]
    return [*given, *more]


def test_the_command_trains_a_pipeline_and_prints_its_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(tmp_path, "--noise", "cosine", "--both_strands", "true"))
    said = capsys.readouterr().out
    assert "60 records" in said and re.search(r"1\.\d{4} ± 0\.\d{4} nats per symbol", said)
    pipe = load_pipeline(tmp_path / "run" / "pipeline")
    assert pipe.config.length == 10 and pipe.denoiser.config.vocab_size == 4
    assert pipe.scheduler.config.noise == "cosine"
    longer = ("--updates", "3", "--resume", "latest")
    main(arguments(tmp_path, "--noise", "cosine", "--both_strands", "true", *longer))
    assert [line["update"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3]


def test_the_first_weights_follow_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        more = ("--output", str(tmp_path / name), "--seed", seed, "--held_out", "0.5")
        main(arguments(tmp_path, *more))
    a, b, c = (
        load_pipeline(tmp_path / name / "pipeline").denoiser.conv_out.weight for name in "abc"
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--denoiser", "ConvDenoisr"], r"did you mean.*ConvDenoiser"),
        (["--noise", "linear"], "log_linear"),
        (["--sequences", "./nowhere.fa"], r"no file ./nowhere.fa"),
        (["--held_out", "2"], "between 0 and 1"),
        (["--denoiser", "TransformerDenoiser", "--denoiser.max_length", "9"], "10 positions"),
    ],
)
def test_mistakes_are_answered_before_a_folder_is_made(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path)
    if "--denoiser" in more:
        given = given[: given.index("--denoiser.hidden")]
    with pytest.raises(SystemExit) as stopped:
        main([*given, *more])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run").exists()
