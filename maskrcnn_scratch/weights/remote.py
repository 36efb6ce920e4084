"""Weights by address: a file, ``https://...`` or ``hf://OWNER/NAME/FILE`` (Hugging Face Hub)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from maskrcnn_scratch.plain_values import shown
from maskrcnn_scratch.weights.download import download_weights, hash_in_name
from maskrcnn_scratch.weights.errors import WeightsError

__all__ = ["is_address", "weights_file"]

HUB = "hf://"
_WEB = re.compile(r"https?://[^/?#]+/([^?#]*/)?(?!\.{1,2}(\?|$))[^/?#]+(\?.*)?")
_HASH = re.compile(r"sha256=([0-9a-fA-F]{8,64})")


def is_address(weights: object) -> bool:
    """Whether it is the address of a file on another machine."""
    return isinstance(weights, str) and weights.startswith((HUB, "http://", "https://"))


def weights_file(weights: str | os.PathLike[str]) -> Path:
    """The path of a weights file; what an address names is downloaded once.

    Addresses are

    - ``https://HOST/FILE.pth#sha256=0123abcd...``, with 8 to 64 digits of the file's SHA-256. They
      may be in the file's name instead, as torch.hub has it (``FILE-0123abcd.pth``);
    - ``hf://OWNER/NAME/FILE`` or ``hf://OWNER/NAME/FILE@REVISION``, which needs
      ``huggingface_hub``, and has its cache and its login.

    Raises:
        WeightsError: an address without a hash or that is malformed, a failed download, a wrong
            hash, or ``huggingface_hub`` is not installed.
    """
    if not is_address(weights):
        return Path(weights)
    address = str(weights)
    return _from_hub(address) if address.startswith(HUB) else _from_web(address)


def _from_web(address: str) -> Path:
    url, _, fragment = address.partition("#")
    stated = _HASH.fullmatch(fragment)
    if not _WEB.fullmatch(url) or (fragment and stated is None):
        raise WeightsError(
            f"{address}: expected https://HOST/FILE#sha256=DIGITS, with at least 8 digits"
        )
    if stated is None and hash_in_name(url.rpartition("/")[2]) is None:
        raise WeightsError(
            f"{address}: add #sha256=DIGITS, the first 8 or more digits of the file's SHA-256: "
            "without it the download cannot be verified"
        )
    return download_weights(url, sha256=None if stated is None else stated[1].lower())


def _from_hub(address: str) -> Path:
    path, _, revision = address.removeprefix(HUB).partition("@")
    owner, name, file = [*path.split("/", 2), "", "", ""][:3]
    if not (owner and name and file):
        raise WeightsError(f"{address}: expected hf://OWNER/NAME/FILE")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise WeightsError(
            f"{address}: needs huggingface_hub: pip install 'maskrcnn_scratch[hub]'"
        ) from None
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision or None))
    except Exception as error:  # its types differ between versions
        reason = shown(" ".join(str(error).split()) or type(error).__name__, 300)
        raise WeightsError(f"{address}: {reason}") from error
