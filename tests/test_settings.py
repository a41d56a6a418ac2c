"""Settings: what is refused, which source wins, and what a run's record says."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from flowcept import settings
from flowcept.errors import UserError
from flowcept.settings import PRESETS, RESUMABLE, ContextMixture, SampleConfig, TrainConfig
from flowcept.training.run import make_config, read_config, write_config


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert text
    assert text.splitlines() == [text], text
    return text


def toml(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_settings_import_nothing_heavy():
    code = (
        "import sys, flowcept.settings; heavy = {'torch', 'numpy', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("kind", [SampleConfig, TrainConfig])
def test_every_setting_says_what_it_means(kind):
    silent = [f.name for f in fields(kind) if f.name != "context" and not f.metadata.get("help")]
    assert silent == []


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"steps": 0}, "--steps"),
        ({"frames": 0}, "--frames"),
        ({"min_length": -1}, "--min-length"),
        ({"max_length": 0}, "--max-length"),
        ({"guidance": float("nan")}, "--guidance"),
        ({"guidance": -0.1}, "--guidance"),
        ({"rate_guidance": float("inf")}, "--rate-guidance"),
        ({"rate_temperature": float("nan")}, "--rate-temperature"),
        ({"length_scale": 0.0}, "--length-scale"),
        ({"min_length": 9, "max_length": 8}, "--min-length"),
        ({"frames": 9, "max_length": 8}, "--frames"),
        ({"frames": 3, "min_length": 4}, "--frames"),
        ({"insertion": "magic"}, "--insertion"),
        ({"order": "upwards"}, "--order"),
        ({"frames": 5, "insertion": "poisson"}, "posterior"),
        ({"order": "bisection", "insertion": "systematic"}, "--order"),
        ({"rate_temperature": 0.5, "insertion": "bernoulli"}, "--rate-temperature"),
    ],
)
def test_meaningless_sampling_is_refused(changes, flag):
    with pytest.raises(UserError) as error:
        SampleConfig(**changes)
    assert flag in one_line(error)


@pytest.mark.parametrize(
    "changes", [{}, {"guidance": 0.0}, {"frames": 1}, {"min_length": 4, "max_length": 4}]
)
def test_extremes_of_sampling_are_allowed(changes):
    SampleConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"steps": 0}, "--steps"),
        ({"tokens": -5}, "--tokens"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
        ({"clip": 0.0}, "--clip"),
        ({"save_every": 0}, "--save-every"),
        ({"log_every": 0}, "--log-every"),
        ({"codec_batch": 0}, "--codec-batch"),
        ({"prompt_dropout": 1.0}, "--prompt-dropout"),
        ({"given_prompt_dropout": 1.5}, "--given-prompt-dropout"),
        ({"context_dropout": -0.1}, "--context-dropout"),
        ({"held_out": 1.0}, "--held-out"),
        ({"decay": 1.5}, "--decay"),
        ({"max_hours": -1.0}, "--max-hours"),
        ({"fps": float("nan")}, "--fps"),
        ({"warmup": -1}, "--warmup"),
        ({"ema": 1.0}, "--ema"),
        ({"min_frames": 9, "max_frames": 8}, "--min-frames"),
        ({"export_dtype": "float16"}, "--export-dtype"),
        ({"fit": "squash"}, "--fit"),
        ({"causal": True}, "--causal"),
        ({"size": "big"}, "--size"),
        ({"size": "0x64"}, "--size"),
        ({"size": "64x"}, "--size"),
        ({"size": "-64"}, "--size"),
    ],
)
def test_meaningless_training_is_refused(changes, flag):
    with pytest.raises(UserError) as error:
        TrainConfig(**changes)
    assert flag in one_line(error)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_generators_do_not_take_is_refused(seed):
    with pytest.raises(UserError, match="--seed"):
        TrainConfig(seed=seed)


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("96x64", (64, 96)), (" 32X16 ", (16, 32))]
)
def test_size_is_width_by_height(text, size):
    assert TrainConfig(size=text).frame_size == size


@pytest.mark.parametrize(
    "weights",
    [
        {"first": -0.1},
        {"first": float("nan")},
        {"first": float("inf")},
        {f.name: 0.0 for f in fields(ContextMixture)},
    ],
)
def test_context_weights_are_weights(weights):
    with pytest.raises(UserError):
        ContextMixture(**weights)


def test_presets_and_resumable_settings_exist():
    names = {f.name for f in fields(TrainConfig)}
    for preset in PRESETS.values():
        assert set(preset) <= names
    assert set(RESUMABLE) <= names


def test_flags_win_over_file_over_preset(tmp_path: Path):
    tiny = PRESETS["tiny"]
    path = toml(tmp_path, "hidden = 96\ndepth = 3\nlearning_rate = 1\n[context]\nfirst = 2\n")
    config = make_config("tiny", path, {"depth": 2, "seed": 7})
    assert config.depth == 2  # flag over file
    assert config.hidden == 96  # file over preset
    assert config.steps == tiny["steps"] != TrainConfig().steps  # preset over default
    assert config.warmup == TrainConfig().warmup  # default
    assert config.seed == 7
    assert config.learning_rate == 1  # a whole number where any number is wanted
    assert config.context == ContextMixture(first=2.0)


def test_a_flag_that_the_model_to_go_on_from_has_settled(tmp_path: Path):
    """It would do nothing: it is refused. A file of settings may record it."""
    for flags in ({"window": 2}, {"hidden": 64}, {"codec_steps": 0}):
        with pytest.raises(UserError) as error:
            make_config("small", None, {"init": "m.safetensors", **flags})
        assert "--" + next(iter(flags)).replace("_", "-") in one_line(error)
    recorded = toml(tmp_path, "hidden = 96\nwindow = 3")
    assert make_config("small", recorded, {"init": "m.safetensors"}).hidden == 96
    assert make_config("small", None, {"window": 2}).window == 2


def test_unknown_preset():
    with pytest.raises(UserError, match="tiny") as error:
        make_config("huge", None, {})
    assert "huge" in one_line(error)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hiden = 64", "hiden"),
        ("hidden = '64'", "hidden"),
        ("hidden = 64.0", "hidden"),
        ("hidden = true", "hidden"),
        ("learning_rate = 'fast'", "learning_rate"),
        ("checkpointing = 1", "checkpointing"),
        ("dtype = 3", "dtype"),
        ("steps = [1]", "steps"),
        ("steps = 0", "--steps"),
        ("[hidden]\nx = 1", "hidden"),
        ("context = 3", "context"),
        ("[context]\nfrist = 1", "frist"),
        ("[context]\nfirst = 'often'", "context"),
        ("[context]\nfirst = [1]", "context"),
        ("hidden = ", "TOML"),
        ("\x00", "TOML"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, text, named):
    with pytest.raises(UserError) as error:
        make_config("small", toml(tmp_path, text), {})
    assert named in one_line(error)


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "latin.toml").write_bytes(b"init = '\xe9'")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(UserError) as error:
            read_config(path)
        assert path.name in one_line(error)


def test_a_written_record_reads_back(tmp_path: Path):
    config = TrainConfig(
        size="96x64",
        learning_rate=3e-7,
        max_hours=1e30,
        init='C:\\a "model"\n\u00e9 \U0001f415.safetensors',
        checkpointing=True,
        context=ContextMixture(first=1 / 3, runs=0.0),
    )
    write_config(config, tmp_path / "config.toml")
    assert TrainConfig(**read_config(tmp_path / "config.toml")) == config


def test_one_table_of_what_a_resumed_run_may_change():
    from flowcept.training import run as train

    assert train.RESUMABLE is settings.RESUMABLE
