"""Settings: what is refused, and how records come from plain values."""

import subprocess
import sys
from dataclasses import fields

import pytest

from flowcept.errors import UserError
from flowcept.settings import (
    OF_THE_MODEL,
    PRESETS,
    RESUMABLE,
    ContextMixture,
    SampleConfig,
    TrainConfig,
    from_mapping,
    leaf_fields,
    mixed,
    with_flags,
)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert text
    assert text.splitlines() == [text], text
    return text


def test_settings_import_nothing_heavy():
    code = (
        "import sys, flowcept.settings; heavy = {'torch', 'numpy', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_setting_says_what_it_means():
    leaves = [one for _, one in leaf_fields(TrainConfig)]
    assert all(one.metadata["help"] for one in (*leaves, *fields(SampleConfig)))
    grouped = [one for group in fields(TrainConfig) for one in fields(group.default)]
    assert len(leaves) == len(grouped) - len(fields(ContextMixture))
    assert {one.type for one in leaves} == {int, float, str, bool}


def test_no_name_is_in_two_tables():
    names = [one.name for _, one in leaf_fields(TrainConfig)]
    assert len(names) == len(set(names))
    assert "context" not in names


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"steps": 0}, "--steps"),
        ({"frames": 0}, "--frames"),
        ({"min_length": -1}, "--min-length"),
        ({"max_length": 0}, "--max-length"),
        ({"guidance": float("nan")}, "--guidance"),
        ({"guidance": -0.1}, "--guidance"),
        ({"guidance": float("inf")}, "--guidance"),
        ({"rate_temperature": float("nan")}, "--rate-temperature"),
        ({"length_scale": 0.0}, "--length-scale"),
        ({"min_length": 9, "max_length": 8}, "--min-length"),
        ({"frames": 9, "max_length": 8}, "--frames"),
        ({"frames": 3, "min_length": 4}, "--frames"),
    ],
)
def test_meaningless_sampling_is_refused(changes, flag):
    with pytest.raises(UserError) as error:
        SampleConfig(**changes)
    assert "--" not in one_line(error)
    assert flag in with_flags(one_line(error))


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
        ({"late": 0.0}, "--late"),
        ({"late": 1.0}, "--late"),
        ({"shift": 0.0}, "--shift"),
        ({"size": "big"}, "--size"),
        ({"size": "0x64"}, "--size"),
        ({"size": "64x"}, "--size"),
        ({"size": "-64"}, "--size"),
    ],
)
def test_meaningless_training_is_refused(changes, flag):
    with pytest.raises(UserError) as error:
        TrainConfig().changed(**changes)
    assert "--" not in one_line(error)
    assert flag in with_flags(one_line(error))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_generators_do_not_take_is_refused(seed):
    with pytest.raises(UserError, match="`seed`"):
        TrainConfig().changed(seed=seed)


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("96x64", (64, 96)), (" 32X16 ", (16, 32))]
)
def test_size_is_width_by_height(text, size):
    assert TrainConfig().changed(size=text).data.frame_size == size


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
    names = {one.name for _, one in leaf_fields(TrainConfig)}
    for preset in PRESETS.values():
        TrainConfig.from_flat(preset)
    assert set(RESUMABLE) | set(OF_THE_MODEL) <= names
    assert {"max_hours", "log_every", "export_dtype"} <= set(RESUMABLE)
    assert {"codec", "hidden", "window", "text_source"} <= set(OF_THE_MODEL)


def test_settings_by_name_alone():
    config = TrainConfig.from_flat({"hidden": 96, "fps": 12, "context": {"first": 2}})
    assert (config.network.hidden, config.data.fps) == (96, 12.0)
    assert config.context == ContextMixture(first=2.0)
    other = config.changed(depth=3, context=ContextMixture(runs=0.0))
    assert (other.network.hidden, other.network.depth) == (96, 3)
    assert other.context == ContextMixture(runs=0.0)
    assert TrainConfig.from_flat(other.flat()) == other


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"network": {"hiden": 3}}, "network.hiden"),
        ({"network": {"hidden": "3"}}, "network.hidden"),
        ({"network": 3}, "network"),
        ({"hidden": 3}, "hidden"),
        ({"context": {"first": True}}, "context.first"),
        ({"optimizer": {"steps": 0}}, "`steps`"),
    ],
)
def test_wrong_values_are_named_with_their_table(values, named):
    with pytest.raises(UserError) as error:
        from_mapping(TrainConfig, values)
    assert named in one_line(error)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("`min_length` must be positive, not -1", "--min-length must be positive, not -1"),
        ("take `guidance=1`, or `fps=2.5`", "take --guidance 1, or --fps 2.5"),
        ("`anyway=True` goes on", "--anyway goes on"),
        ("`multi=K` puts K there", "--multi K puts K there"),
        ("a 'Clip' of ``` and `A`", "a 'Clip' of ``` and `A`"),
    ],
)
def test_the_command_line_says_keywords_as_flags(line, told):
    assert with_flags(line) == told


def test_seeds_of_other_purposes_and_numbers_have_nothing_in_common():
    names = [("clip", number) for number in range(200)] + [("window", n) for n in range(200)]
    seeds = [mixed(seed, *name) for seed in range(5) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert mixed(7, 1, 3) == 6852789664594547913  # batches of equal runs stay as they are
