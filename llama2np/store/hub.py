"""Models of the Hugging Face hub, through the package huggingface_hub.

That package honours HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN, checks sizes, and resumes.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from llama2np.store.download import digest_of
from llama2np.store.errors import PullError
from llama2np.store.names import HUB_NAME, Pulled
from llama2np.store.parts import is_later_part, part_names

_INSTALL = f"needs huggingface_hub: {sys.executable} -m pip install 'llama2np[hub]'"
# What a folder needs besides its weights.
_SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "README.md")
_SKIPPED = ("onnx/*", "openvino/*", "original/*", ".*", "*/.*")
# The first kind of weights that a repository has. It may have them in other forms, too: Mistral's
# consolidated.safetensors, model.fp16.safetensors.
_WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
)
_QUANTIZATION = "Q4_K_M"  # of the files of a repository, if none is named


def fetch(name: str, folder: Path, tell: Callable[[str], None]) -> Pulled:
    """Download ORG/NAME[:FILE] into `folder`; return its record.

    Without FILE: the folder with its weights and its tokenizer, if it has a config.json; else the
    only GGUF file, or the one in Q4_K_M. FILE: the name of a .gguf, or a quantization such as Q8_0.
    Raises PullError, and OSError.
    """
    match = HUB_NAME.fullmatch(name)
    assert match is not None
    repository, file = match.groups()
    with _explained(repository) as api:
        info = api.HfApi().model_info(repository, files_metadata=True)
        entries = {entry.rfilename: entry for entry in info.siblings or ()}
        files = chosen(repository, list(entries), file)
        size = sum(getattr(entries[each], "size", None) or 0 for each in files)
        licence = _licence(info)
        tell(f"{name}: {len(files)} file(s), {size:,} bytes, licence {licence}")
        for each in files:
            path = Path(
                api.hf_hub_download(repository, each, revision=info.sha, local_dir=str(folder))
            )
            _check(path, getattr(entries[each], "lfs", None))
    first = files[0] if files[0].endswith(".gguf") else ""
    return Pulled(name, first, licence, f"huggingface_hub: {repository} {info.sha or ''}".strip())


def chosen(repository: str, names: Iterable[str], file: str | None) -> list[str]:
    """The files of a repository that are downloaded. Raises PullError."""
    names = sorted(name for name in names if _is_safe(name))
    models = [
        name
        for name in names
        if name.endswith(".gguf") and "mmproj" not in name and not is_later_part(name)
    ]
    if file is None and "config.json" in names:
        kept = [name for name in names if not _matches(name, _SKIPPED)]
        for patterns in _WEIGHTS:
            weights = [name for name in kept if "/" not in name and _matches(name, patterns)]
            if weights:
                return weights + [name for name in kept if _matches(name, _SETTINGS)]
    if not models:
        raise PullError(
            f"{repository}: has no GGUF file, nor a config.json with model.safetensors or "
            "pytorch_model.bin beside it"
        )
    found = models if file is None else [n for n in models if file in (n, PurePosixPath(n).name)]
    if len(found) != 1:
        kind = re.escape(file or _QUANTIZATION)
        end = re.compile(rf"[-._]{kind}(-00001-of-\d{{5}})?\.gguf", re.IGNORECASE)
        found = [name for name in models if end.search(name)]
    if len(found) != 1:
        shown = ", ".join(models[:20]) + (" ..." if len(models) > 20 else "")
        asked = "several GGUF files" if file is None else f"{len(found)} files for {file}"
        raise PullError(f"{repository}: has {asked}: name one, {repository}:FILE, of {shown}")
    parts = part_names(found[0])
    if missing := [name for name in parts if name not in names]:
        raise PullError(f"{repository}: has no {missing[0]}, a part of {found[0]}")
    return parts


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_safe(name: str) -> bool:
    """Whether this names a file inside the folder."""
    return not (PurePosixPath(name).is_absolute() or "\\" in name or ":" in name or ".." in name)


def _licence(info: Any) -> str:
    tags = [tag for tag in info.tags or () if tag.startswith("license:")]
    return tags[0].removeprefix("license:") if tags else "not stated"


def _check(path: Path, lfs: Any) -> None:
    """Compare a large file with the sha256 that the hub states. Raises PullError."""
    expected = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    if expected and (found := digest_of(path)) != expected:
        path.unlink()
        raise PullError(
            f"{path.name}: expected sha256 {expected}, found {found}: run the same command again"
        )


@contextmanager
def _explained(repository: str) -> Iterator[Any]:
    """Yield the package huggingface_hub; its errors become PullErrors of one line."""
    try:
        import huggingface_hub as api
        from huggingface_hub import constants, errors, utils
    except ImportError:
        raise PullError(f"{repository}: {_INSTALL}") from None
    endpoint = constants.ENDPOINT
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield api
    except PullError:
        raise
    except errors.GatedRepoError:
        raise PullError(
            f"{repository}: accept its licence on {endpoint}/{repository}, then log in with "
            "`hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise PullError(
            f"{repository}: {endpoint} has no such model, or it is private (`hf auth login`)"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise PullError(f"{repository}: not pulled yet, and HF_HUB_OFFLINE is set") from None
    except Exception as error:  # its HTTP library has changed, and has its own errors
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PullError(
            f"{repository}: cannot be downloaded from {endpoint} ({reason}): "
            "run the same command again to resume"
        ) from None
