"""Weights by address, from a local server, and checkpoints of Lightning."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_scratch.builders.from_config import (
    ModelConfig,
    build_model,
    load_starting_weights,
    with_resolved_eps,
)
from maskrcnn_scratch.cli import main
from maskrcnn_scratch.weights import WeightsError, read_state_dict, weights_file

SMALL = ModelConfig(architecture="small", weights="none", widths=(8, 8, 8, 8))
COMMIT = "0" * 40


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, with the headers of the Hugging Face Hub. ``/hub/`` is its address."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.replace("/hub/someone/model/resolve/main/", "/"))

    def end_headers(self) -> None:
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0123"')
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    path = tmp_path / "served" / "net.pth"
    torch.manual_seed(0)
    torch.save(build_model(SMALL, 4).state_dict(), path)
    return path


@pytest.fixture
def address(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(Handler, directory=str(weights.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def digits(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_itself(tmp_path: Path) -> None:
    assert weights_file(tmp_path / "a.pth") == tmp_path / "a.pth"
    assert weights_file("a.pth") == Path("a.pth")


def test_an_address_with_a_hash(weights: Path, address: str) -> None:
    file = weights_file(f"{address}/net.pth#sha256={digits(weights)[:12].upper()}")
    assert file.read_bytes() == weights.read_bytes()
    weights.unlink()
    with pytest.raises(WeightsError, match="HTTP 404"):
        weights_file(f"{address}/net.pth#sha256={'1' * 8}")  # another file of this name


def test_a_wrong_hash_is_refused(address: str) -> None:
    with pytest.raises(WeightsError, match=r"net\.pth: the SHA-256 .* expected was 00000000"):
        weights_file(f"{address}/net.pth#sha256=00000000")


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ("https://host/net.pth", "add #sha256=DIGITS"),
        ("https://host/net.pth#sha256=0123", "at least 8 digits"),
        ("https://host/net.pth#md5=0123456789", "expected https://HOST/FILE#sha256"),
        ("https://host/a/..#sha256=01234567", "expected https://HOST/FILE#sha256"),
        ("https://host", "expected https://HOST/FILE#sha256"),
        ("hf://owner/net.pth", "expected hf://OWNER/NAME/FILE"),
    ],
)
def test_malformed_addresses(wrong: str, reason: str) -> None:
    with pytest.raises(WeightsError, match=reason) as error:
        weights_file(wrong)
    assert str(error.value).startswith(wrong)


def test_training_starts_from_an_address(weights: Path, address: str) -> None:
    config = with_resolved_eps(
        ModelConfig(**{**vars(SMALL), "weights": f"{address}/net.pth#sha256={digits(weights)}"})
    )
    model = build_model(config, 4)
    load_starting_weights(model, config)
    expected = read_state_dict(weights)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_commands_take_addresses(
    weights: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "show", f"{address}/net.pth#sha256={digits(weights)}"]) == 1
    assert "tensors" in capsys.readouterr().out  # of the small model, which no builder has
    for command in (["predict", str(weights)], ["export", "a.onnx", "--image-size", "64", "64"]):
        assert main([*command, "--weights", f"{address}/net.pth"]) == 1
        assert "add #sha256=DIGITS" in capsys.readouterr().err


def test_hub(weights: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", f"{address}/hub")
    template = f"{address}/hub/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    file = weights_file("hf://someone/model/net.pth")
    assert file.read_bytes() == weights.read_bytes()
    with pytest.raises(WeightsError, match=r"^hf://someone/model/gone\.pth: ."):
        weights_file("hf://someone/model/gone.pth")


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'maskrcnn_scratch\[hub\]'"):
        weights_file("hf://someone/model/net.pth")


def test_a_lightning_checkpoint(weights: Path, tmp_path: Path) -> None:
    """What ``Trainer.save_checkpoint`` writes for a module that has the detector as ``model``."""
    plain = read_state_dict(weights)
    content: dict[str, Any] = {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{key}": value for key, value in plain.items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.ones(())}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "classes": ["a", "b"]},
    }
    for prefix in ("model.", "model.module.", "_orig_mod.model."):
        state = {f"{prefix}{key}": value for key, value in plain.items()}
        torch.save({**content, "state_dict": state}, tmp_path / "last.ckpt")
        found = read_state_dict(tmp_path / "last.ckpt")
        assert found.keys() == plain.keys()
        assert all(torch.equal(value, plain[key]) for key, value in found.items())
