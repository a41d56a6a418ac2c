"""The autoencoder: its start, its training, exact resumption."""

import pytest
import torch
from fixtures_codec import pictures, psnr_db, small_codec
from torch.utils._python_dispatch import TorchDispatchMode

from flowcept.codecs import CodecConfig, autoencoder, build_codec
from flowcept.codecs.autoencoder import (
    FINAL_RATE,
    WARMUP,
    Autoencoder,
    CodecTrainer,
    _cosine_basis,
    adaptive_weight,
    hinge_loss,
)
from flowcept.errors import UserError
from flowcept.settings import CodecSettings


def test_default_size():
    assert sum(p.numel() for p in build_codec(CodecConfig()).parameters()) < 1.5e6


def test_starts_as_a_cosine_transform():
    """Untrained, flat pictures survive and 16 channels carry a gradient: 25 dB of a shortcut."""
    codec = small_codec(channels=16)
    flat = torch.tensor([0.5, -0.25, 0.125])[:, None, None].expand(1, 3, 32, 32)
    assert psnr_db(codec.decode(codec.encode(flat)), flat) > 25
    basis = _cosine_basis(8, 192)
    torch.testing.assert_close(basis @ basis.T, torch.eye(192), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "values", [{"codec_steps": -1}, {"codec_rate": 0.0}, {"adversarial": -1.0}]
)
def test_training_settings_errors(values):
    with pytest.raises(UserError):
        CodecSettings(**values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_learns_a_few_pictures(dtype, monkeypatch):
    """From about 24 dB, where the cosine transform is, to over 30: 100 steps on 4 pictures."""
    monkeypatch.setattr(autoencoder, "WARMUP", 10)
    codec, image = small_codec(channels=16), pictures(4)
    before = psnr_db(codec.decode(codec.encode(image)), image)
    settings = CodecSettings(codec_steps=100)
    trainer = CodecTrainer(codec, settings, dtype=dtype)
    losses = [float(trainer.step(image)["loss"]) for _ in range(settings.codec_steps)]
    averaged = trainer.averaged
    averaged.fit_statistics([image])
    after = psnr_db(averaged.decode(averaged.encode(image)), image)
    assert losses[-1] < losses[0] / 2
    assert after > max(30, before + 4)
    assert averaged is not codec


def test_learning_rate_rises_then_falls_to_its_end():
    trainer = CodecTrainer(small_codec(), CodecSettings(codec_steps=500))
    rates = []
    for trainer.num_steps in range(501):
        rates.append(trainer.learning_rate(trainer.num_steps / 500))
    assert rates[0] == pytest.approx(1 / WARMUP, rel=1e-2)
    assert max(rates) == rates[WARMUP - 1] > 0.97
    assert rates[WARMUP - 1 :] == sorted(rates[WARMUP - 1 :], reverse=True)
    assert rates[500] == pytest.approx(FINAL_RATE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_training_is_the_same_bit_for_bit(tmp_path, dtype):
    """With latent noise and the discriminator, interrupted on either side of its start."""
    settings = CodecSettings(codec_steps=8, adversarial=0.5)
    batches = [pictures(4, seed=i) for i in range(8)]

    def fresh(seed: int) -> CodecTrainer:
        torch.manual_seed(seed)
        codec = build_codec(CodecConfig(channels=4, width=8))
        assert isinstance(codec, Autoencoder)
        return CodecTrainer(codec, settings, dtype=dtype)

    whole = fresh(0)
    expected = [whole.step(batch) for batch in batches]
    for cut in (2, 6):
        first = fresh(0)
        for batch in batches[:cut]:
            first.step(batch)
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = fresh(1)
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [second.step(batch) for batch in batches[cut:]] == expected[cut:]
        for a, b in (
            (whole.codec, second.codec),
            (whole.averaged, second.averaged),
            (whole._discriminator, second._discriminator),
        ):
            for name, value in a.state_dict().items():
                assert torch.equal(value, b.state_dict()[name]), name


def test_state_of_other_settings_is_refused():
    state = CodecTrainer(small_codec(), CodecSettings()).state_dict()
    with pytest.raises(ValueError, match="adversarial"):
        CodecTrainer(small_codec(), CodecSettings(adversarial=0.5)).load_state_dict(state)


def test_averaged_weights_lag_behind():
    trainer = CodecTrainer(small_codec(), CodecSettings(codec_steps=20))
    trainer.step(pictures(4))
    old = trainer.codec.last.weight.detach().clone()
    trainer.step(pictures(4, seed=1))
    new, mean = trainer.codec.last.weight, trainer.averaged.last.weight
    decay = 2 / 11  # the second step: (1 + 1) / (10 + 1), from the first step's weights
    torch.testing.assert_close(mean, decay * old + (1 - decay) * new)


def test_adaptive_weight_is_the_ratio_of_gradients_up_to_its_bound():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = 3 * last[0], 4 * last[1]
    assert float(adaptive_weight(reconstruction, adversarial, last, 10.0)) == pytest.approx(0.75)
    assert float(adaptive_weight(reconstruction, adversarial, last, 0.5)) == pytest.approx(0.5)
    nothing = 0 * last[1]
    assert float(adaptive_weight(reconstruction, nothing, last, 10.0)) == 10.0


def test_a_violent_discriminator_cannot_swamp_reconstruction(monkeypatch):
    """Its last layer made 1e6 times larger, its gradient is still `adversarial` of the other's."""
    monkeypatch.setattr(autoencoder, "ADVERSARIAL_START", 0.0)
    settings = CodecSettings(codec_steps=4, adversarial=0.5)
    weights = {}
    for factor in (1.0, 1e6):
        trainer = CodecTrainer(small_codec(), settings)
        with torch.no_grad():
            trainer._discriminator[-1].weight.mul_(factor)
        weights[factor] = float(trainer.step(pictures(4))["adversarial_weight"])
    assert weights[1e6] * 1e6 == pytest.approx(weights[1.0], rel=1e-3)
    assert weights[1.0] < settings.adversarial * autoencoder.ADVERSARIAL_LARGEST


def test_the_discriminator_starts_when_told_and_learns(monkeypatch):
    monkeypatch.setattr(autoencoder, "ADVERSARIAL_START", 1 / 3)
    monkeypatch.setattr(autoencoder, "DISCRIMINATOR_RATE", 4e-3)
    monkeypatch.setattr(autoencoder, "WARMUP", 1)
    settings = CodecSettings(codec_steps=60, adversarial=0.01)
    trainer = CodecTrainer(small_codec(channels=2), settings)
    values = [trainer.step(pictures(4, seed=i)) for i in range(60)]
    assert all("discriminator" not in v for v in values[:20])
    hinge = [v["discriminator"] for v in values[20:]]
    assert sum(hinge[-5:]) < 0.7 * sum(hinge[:5])


def test_hinge_loss():
    assert float(hinge_loss(torch.tensor([2.0]), torch.tensor([-2.0]))) == 0
    assert float(hinge_loss(torch.tensor([0.0]), torch.tensor([0.0]))) == 1
    assert float(hinge_loss(torch.tensor([-1.0]), torch.tensor([1.0]))) == 2


def test_the_generator_of_the_caller_is_not_touched(monkeypatch):
    monkeypatch.setattr(autoencoder, "ADVERSARIAL_START", 0.0)
    settings = CodecSettings(adversarial=0.5)
    codec, image = small_codec(), pictures(2)
    before = torch.get_rng_state()
    CodecTrainer(codec, settings).step(image)
    assert torch.equal(before, torch.get_rng_state())


class Reads(TorchDispatchMode):
    """Counts the numbers with a fraction that Python reads from tensors, as losses would be."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = func is torch.ops.aten._local_scalar_dense.default
        self.count += bool(reads and args[0].is_floating_point())
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device(monkeypatch):
    monkeypatch.setattr(autoencoder, "ADVERSARIAL_START", 0.0)
    trainer = CodecTrainer(small_codec(), CodecSettings(adversarial=0.5))
    with Reads() as reads:
        losses = trainer.step(pictures(2))
        assert reads.count == 0
        values = [float(loss) for loss in losses.values()]
    assert reads.count == len(values) == 6
    assert not any(loss.requires_grad for loss in losses.values())
