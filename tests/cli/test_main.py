"""The command: help, exit status, one-line errors, and the modules that it imports."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from maskrcnn_scratch import cli


def run(*args, code=0):
    """Runs the command in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "maskrcnn_scratch", *args], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done


def imported(statement):
    """Modules that are imported after ``statement``."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_and_asking_for_help_do_not_import_torch():
    heavy = {"torch", "numpy", "PIL", "tyro"}
    assert not heavy & imported("import maskrcnn_scratch")
    assert not heavy & imported("from maskrcnn_scratch.cli import main; main(['--help'])")


def test_using_the_model_needs_none_of_the_extras():
    extras = {"torchvision", "tyro", "safetensors", "hotcoco", "matplotlib", "onnx", "tensorboard"}
    loaded = imported("from maskrcnn_scratch import MaskRCNN, Predictor, load_model")
    assert "torch" in loaded and not extras & loaded


def test_help_lists_every_command():
    listed = run("--help").stdout
    for command, text in cli.COMMANDS.items():
        assert f"{command} " in listed and text in listed
    assert run("--version").stdout.startswith("maskrcnn_scratch 0.")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_exists_and_has_help(command, capsys):
    words = command.split()
    assert callable(getattr(import_module(f"maskrcnn_scratch.cli.{words[0]}"), words[-1]))
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--help"])
    assert stop.value.code == 0
    assert f"usage: maskrcnn {command}" in capsys.readouterr().out


def test_wrong_usage(capsys):
    assert cli.main([]) == 2
    assert "usage: maskrcnn COMMAND" in capsys.readouterr().out
    for words, known in (("predct", "predict, "), ("data", "data check"), ("data chek", "data")):
        assert cli.main(words.split()) == 2
        told = capsys.readouterr().err
        assert f"maskrcnn: error: no command '{words}'; the commands are {known}" in told
    assert cli.main(["weights", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "weights show" in shown and "data check" not in shown
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "a.jpg", "--wieghts", "x"])
    assert stop.value.code == 2 and "--weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, status, message",
    [
        (ValueError("first\n  second"), 1, "first second"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (ArithmeticError("loss_mask is nan"), 1, "loss_mask is nan"),
        (RuntimeError("CUDA out of memory"), 1, "CUDA out of memory"),
        (MemoryError(), 1, "out of memory"),
        (cli.UsageError("name an image"), 2, "name an image"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ModuleNotFoundError("No module named 'tqdm'"),
            1,
            "No module named 'tqdm': pip install 'maskrcnn_scratch[cli]'",
        ),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, status, message):
    from maskrcnn_scratch.cli import predict

    def fail(images: tuple[str, ...] = ()) -> int:
        raise error

    monkeypatch.setattr(predict, "predict", fail)
    assert cli.main(["predict"]) == status
    assert capsys.readouterr().err == f"maskrcnn predict: error: {message}\n"


def test_a_warning_is_shown_once(monkeypatch, capsys):
    from maskrcnn_scratch.cli import predict

    def warn_twice(images: tuple[str, ...] = ()) -> int:
        for _ in range(2):
            with warnings.catch_warnings():  # forgets which warnings were shown
                warnings.simplefilter("default")
            warnings.warn("look at this", stacklevel=1)
        return 0

    monkeypatch.setattr(predict, "predict", warn_twice)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _show_as_python_does
        assert cli.main(["predict"]) == 0
    assert capsys.readouterr().err == "maskrcnn predict: warning: look at this\n"


def _show_as_python_does(message, category, filename, lineno, file=None, line=None):
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def test_a_traceback_on_demand(monkeypatch):
    monkeypatch.setenv("MASKRCNN_TRACEBACK", "1")
    with pytest.raises(cli.UsageError):
        cli.main(["predict"])


def test_bugs_are_not_reported_as_wrong_input(monkeypatch):
    from maskrcnn_scratch.cli import predict

    def bug() -> int:
        raise TypeError("a bug")

    monkeypatch.setattr(predict, "predict", bug)
    with pytest.raises(TypeError):
        cli.main(["predict"])


def test_without_the_cli_extra_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert cli.main(["predict", "a.jpg"]) == 1
    assert "pip install 'maskrcnn_scratch[cli]'" in capsys.readouterr().err
