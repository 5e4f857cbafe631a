"""What a person at the terminal sees: help, log, table, exit code."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from trainer import command, config, task

ENTRY = [sys.executable, "-m", "trainer.task"]
ROOT = pathlib.Path(task.__file__).parents[1]


def process(*args, entry=ENTRY, cwd=ROOT, **environ):
    """Runs the program as a user does: without what tests tell TensorFlow."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    return subprocess.run(
        [*entry, *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**env, "PYTHONPATH": str(ROOT), **environ},
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_shows_every_flag_and_ends_with_0(capsys, flag):
    assert task.main(["--seed=1", flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for field in dataclasses.fields(config.Config):
        assert re.search(rf"^  --{field.name}(=|$)", out, re.MULTILINE), field.name
        assert field.metadata["help"] in out


def test_the_console_script_shows_help_and_starts_no_tensorflow():
    script = pathlib.Path(sys.executable).with_name("segtrainer-train")
    assert script.exists(), "make install makes it"
    done = process("--help", entry=[str(script)])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == process("--help").stdout
    assert "--data_dir" in done.stdout


def test_help_imports_no_tensorflow():
    code = "import sys; from trainer import task; task.main(['--help']); "
    code += "sys.exit('tensorflow' in sys.modules)"
    assert process(entry=[sys.executable, "-c", code]).returncode == 0


def test_commands_convolve_by_onednn_on_any_processor_unless_told_otherwise():
    code = "from trainer import command; command.set_up_tensorflow(); "
    code += "import tensorflow as tf; x = tf.ones((4, 4, 4, 4)); "
    code += "tf.function(lambda: tf.nn.conv2d(x, x, 1, 'SAME'))(); "
    code += "import os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    for told, asked in ({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0"):
        told["ONEDNN_VERBOSE"] = "1"
        out = process(entry=[sys.executable, "-c", code], **told).stdout
        assert out.splitlines()[-1] == asked
        assert (",convolution," in out) == (asked == "1")


def test_commands_take_of_a_gpu_what_they_need_unless_told_otherwise(monkeypatch):
    name = "TF_FORCE_GPU_ALLOW_GROWTH"
    monkeypatch.setattr(os, "environ", {})
    command.set_up_tensorflow()
    assert os.environ[name] == "true"
    os.environ[name] = "false"
    command.set_up_tensorflow()
    assert os.environ[name] == "false"


def test_a_refused_command_ends_with_2_and_one_line():
    done = process("--no_such_flag=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("segtrainer: ")


@pytest.mark.slow
def test_a_try_out_goes_through_everything_and_leaves_nothing_behind(tmp_path):
    more = ["--image_size=32", "--batch_size=2", "--encoder_weights=none"]
    done = process("--fast_dev_run", *more, cwd=tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    # On the terminal are our lines, none of TensorFlow's.
    first, second, *log = done.stderr.splitlines()
    assert first.startswith("oxford_iiit_pet 4.0.0: 32 examples to train on"), first
    assert second.startswith("4 steps of 2 examples"), second
    evaluation = r"\[[24]\] val_loss=[\d.]+ val_mean_iou=[\d.]+ val_pixel_accuracy=.*"
    progress = r"\[\d\] of 4: loss=.*"
    assert all(re.fullmatch(f"{evaluation}|{progress}", line) for line in log), log
    assert sum(bool(re.fullmatch(evaluation, line)) for line in log) == 2

    # It ends with the table and with paths that are there, all in one folder.
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"Best by val_mean_iou: step [24] of 4, on test:", lines[0])
    assert [line.split()[0] for line in lines[1:7]] == [
        *("class", "pet", "background", "border", "mean", "pixel")
    ]
    paths = [pathlib.Path(line.split(" ")[-1]) for line in lines[7:]]
    assert [path.name for path in paths] == [
        *("curves.png", "predictions.png", "report.html", "logs", "1")
    ]
    assert all(path.exists() for path in paths)
    [job_dir] = tmp_path.glob("segtrainer-*")
    assert paths[-2].parent == job_dir and paths[-1].parent == job_dir / "export"
    names = {path.name for path in job_dir.iterdir()}
    expected = {"checkpoints", "config.json", "logs", "metrics.jsonl", "pictures"}
    assert names == expected | {"export", "report.html", "result.json"}
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_log_level_that_a_user_gives_is_left_alone(tmp_path):
    code = "import os, sys; from trainer import terminal\n"
    code += "with terminal.quiet_start():\n    os.write(2, b'heard')\n"
    code += "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    entry = [sys.executable, "-c", code]
    loud = process(entry=entry, TF_CPP_MIN_LOG_LEVEL="0")
    assert (loud.stdout.strip(), loud.stderr) == ("0", "heard")
    quiet = process(entry=entry)
    assert (quiet.stdout.strip(), quiet.stderr) == ("2", "")


def test_a_defect_of_ours_is_not_hidden_in_one_line(monkeypatch):
    def broken(*_):
        raise TypeError("a defect")

    monkeypatch.setattr(config, "directories", broken)
    with pytest.raises(TypeError, match="a defect"):
        task.main(["--fast_dev_run"])


def test_the_command_in_the_end_is_one_for_a_shell(pets, tiny_unet, tmp_path, capsys):
    args = [f"--data_dir={pets(8)}", "--image_size=32", "--val_fraction=0.25"]
    args += ["--batch_size=2", "--total_steps=1", "--num_pictures=1", "--noexport"]
    assert task.main([*args, f"--job_dir={tmp_path}/my job"]) == 0
    [line] = [x for x in capsys.readouterr().out.splitlines() if "--logdir" in x]
    command = shlex.split(line.split(": ", 1)[1])
    assert command == ["tensorboard", "--logdir", f"{tmp_path}/my job/logs"]


def test_in_a_job_on_vertex_ai_each_line_is_json_with_its_severity(
    pets, tiny_unet, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("CLUSTER_SPEC", "{}")
    args = [f"--data_dir={pets(8)}", "--image_size=32", "--val_fraction=0.25"]
    args += ["--batch_size=2", "--total_steps=3", "--num_pictures=1"]
    assert task.main([*args, f"--job_dir={tmp_path / 'job'}"]) == 0
    assert task.main([*args, f"--job_dir={tmp_path / 'job'}", "--seed=1"]) == 2
    out, err = capfd.readouterr()
    entries = [json.loads(line) for line in out.splitlines()]
    assert all(entry.keys() == {"severity", "message"} for entry in entries)
    *log, answer, refusal = entries
    assert {entry["severity"] for entry in log} == {"INFO"}
    assert any(entry["message"].startswith("[3] val_loss=") for entry in log)
    assert answer["message"].startswith("Best by val_mean_iou")
    assert refusal["severity"] == "ERROR"
    assert refusal["message"].startswith("seed must stay 0 to go on from step-00000003")
    assert "segtrainer: " not in err
