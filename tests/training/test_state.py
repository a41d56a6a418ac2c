"""A run's folder: its settings, what a resumed run may change, its log."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import (
    TINY,
    refused,
)

from flowcept.data import folder as data
from flowcept.data import video
from flowcept.errors import UserError
from flowcept.settings import PRESETS, ContextMixture, TrainConfig
from flowcept.training import run as train
from flowcept.training.state import make_config, read_config, write_config


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert text
    assert text.splitlines() == [text], text
    return text


def toml(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_file_over_preset(tmp_path: Path):
    tiny = PRESETS["tiny"]
    path = toml(
        tmp_path, "learning_rate = 1\n[network]\nhidden = 96\ndepth = 3\n[context]\nfirst = 2\n"
    )
    config = make_config("tiny", path, {"depth": 2, "seed": 7})
    default = TrainConfig().optimizer
    assert config.network.depth == 2  # flag over file
    assert config.network.hidden == 96  # file over preset
    assert config.optimizer.steps == tiny["steps"] != default.steps  # preset over default
    assert config.optimizer.warmup == default.warmup
    assert config.machine.seed == 7
    assert config.optimizer.learning_rate == 1  # a whole number where any number is wanted
    assert config.context == ContextMixture(first=2.0)


def test_a_flag_that_the_model_to_go_on_from_has_settled(tmp_path: Path):
    """It would do nothing: it is refused. A file of settings may record it."""
    for flags in ({"window": 2}, {"hidden": 64}, {"codec_steps": 0}):
        with pytest.raises(UserError) as error:
            make_config("small", None, {"init": "m.safetensors", **flags})
        assert "--" + next(iter(flags)).replace("_", "-") in one_line(error)
    recorded = toml(tmp_path, "hidden = 96\nwindow = 3")
    assert make_config("small", recorded, {"init": "m.safetensors"}).network.hidden == 96
    assert make_config("small", None, {"window": 2}).network.window == 2


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
        ("steps = 0", "`steps`"),
        ("[hidden]\nx = 1", "hidden"),
        ("context = 3", "context"),
        ("[context]\nfrist = 1", "frist"),
        ("[context]\nfirst = 'often'", "context"),
        ("[context]\nfirst = [1]", "context"),
        ("hidden = ", "TOML"),
        ("\x00", "TOML"),
        ("hidden = " + "9" * 5000, "TOML"),
        ("hidden = " + "[" * 5000, "TOML"),
        ("guidance" * 1000 + " = 1", "unknown"),
        ("learning_rate = 1" + "0" * 400, "learning_rate"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, text, named):
    with pytest.raises(UserError) as error:
        make_config("small", toml(tmp_path, text), {})
    assert named in one_line(error)


def test_a_setting_that_is_gone_is_left_out_where_it_was_off(tmp_path: Path):
    path = toml(tmp_path, "[process]\nshift = 2.0\ncontext_noise = 0.0")
    assert read_config(path) == {"shift": 2.0}
    for text in ("context_noise = 0.3", "[process]\ncontext_noise = [0]"):
        with pytest.raises(UserError, match=r"context_noise .* is no longer supported") as error:
            read_config(toml(tmp_path, text))
        one_line(error)


@pytest.mark.usefixtures("no_sheets")
def test_a_run_that_recorded_a_setting_that_is_gone_goes_on(folder: Path, run: Path):
    train.train(folder, run, TINY, pause_at=1, quiet=True)
    config = run / "config.toml"
    recorded = config.read_text(encoding="utf-8")

    def record(value: float) -> None:
        lines = f"[process]\ncontext_noise = {value}\n"
        config.write_text(recorded.replace("[process]\n", lines), encoding="utf-8")

    record(0.3)
    assert f"{config}: context_noise 0.3 is no" in refused(folder, run, TINY, resume=True)
    record(0.0)
    train.train(folder, run, TINY, resume=True, pause_at=2, quiet=True)


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "latin.toml").write_bytes(b"init = '\xe9'")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(UserError) as error:
            read_config(path)
        assert path.name in one_line(error)


def test_a_written_record_reads_back(tmp_path: Path):
    config = TrainConfig().changed(
        size="96x64",
        learning_rate=3e-7,
        max_hours=1e30,
        init='C:\\a "model"\n\u00e9 \U0001f415 \x7f\x1f.safetensors',
        checkpointing=True,
        context=ContextMixture(first=1 / 3, runs=0.0),
    )
    write_config(config, tmp_path / "config.toml")
    assert TrainConfig.from_flat(read_config(tmp_path / "config.toml")) == config
    assert "[network]\n" in (tmp_path / "config.toml").read_text(encoding="utf-8")


def test_a_run_in_use_is_left_alone(folder: Path, whole: Path):
    before = (whole / "log.jsonl").read_bytes()
    assert "--resume" in refused(folder, whole, TINY)
    assert (whole / "log.jsonl").read_bytes() == before


def test_nothing_to_resume(folder: Path, tmp_path: Path):
    assert "resume" in refused(folder, tmp_path / "new", TINY, resume=True)
    assert not (tmp_path / "new").exists()


def test_other_data_cannot_go_on_with_a_run(folder: Path, whole: Path, tmp_path: Path):
    """Longer clips ask for another network: one line, not a list of shapes."""
    run, other = tmp_path / "run", tmp_path / "longer"
    shutil.copytree(whole, run)
    shutil.copytree(folder, other)
    video.write_video(other / "000000.apng", np.zeros((40, 32, 32, 3), np.uint8), 12)
    before = (run / "state.safetensors").read_bytes()
    refused(other, run, TINY, resume=True)
    assert (run / "state.safetensors").read_bytes() == before


@pytest.mark.usefixtures("no_sheets")
def test_resuming_keeps_what_is_not_given(folder: Path, run: Path, monkeypatch):
    train.train(folder, run, TINY, pause_at=1, quiet=True)
    seen = []
    monkeypatch.setattr(train, "run_to_end", lambda trainer, *_: seen.append(trainer.config))
    other = TINY.changed(save_every=77, eval_every=78)
    for given in (("eval_every",), ()):
        train.train(folder, run, other, resume=True, given=given, quiet=True)
    assert [(c.report.save_every, c.report.eval_every) for c in seen] == [(2, 78), (2, 3)]


def test_resuming_refuses_what_it_would_not_do(folder: Path, whole: Path):
    before = (whole / "log.jsonl").read_bytes()
    other = TINY.changed(learning_rate=TINY.optimizer.learning_rate / 2)
    with pytest.raises(UserError, match=r"--learning-rate .*--init"):
        train.train(folder, whole, other, resume=True, given=["learning_rate"], quiet=True)
    assert (whole / "log.jsonl").read_bytes() == before
    train.train(folder, whole, TINY, resume=True, given=["learning_rate"], quiet=True)


@pytest.mark.usefixtures("no_sheets")
def test_resuming_on_other_clips_is_refused(folder: Path, tmp_path: Path):
    """The run's own pictures, where it lies among the clips, are none of them."""
    clips = tmp_path / "clips"
    shutil.copytree(folder, clips)
    (clips / "metadata.jsonl").unlink()  # which would name all clips
    config = TINY.changed(codec_steps=1, save_every=1)
    train.train(clips, clips / "run", config, pause_at=1, quiet=True)
    assert list(clips.glob("run/*.png")), "a picture that could be taken for a clip"
    train.train(clips, clips / "run", config, resume=True, pause_at=2, quiet=True)
    one = data.scan(folder, TINY.data).entries[0].path
    shutil.copy(one, clips / f"one-more{one.suffix}")
    with pytest.raises(UserError, match="does not fit these clips"):
        train.train(clips, clips / "run", config, resume=True, quiet=True)
