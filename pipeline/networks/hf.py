"""Text classifiers of Hugging Face's transformers, from a folder on this machine."""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn

from ..errors import MissingDependency, ModelError
from ..fingerprints import fingerprint, sha256_of
from ..lengths import MASK
from .network import Network, Shapes, told
from .text_encoder import TOKENS

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class HuggingFace(Network, frozen=True, extra="forbid"):
    """A text classifier of transformers (arXiv:1910.03771), as its `save_pretrained` wrote it; nothing is downloaded.

    A folder of a model that was never trained to classify, such as a pretrained encoder, gets a new last layer, which a
    `train` stage has to train. Texts have to be cut by the folder's own tokenizer: `data.tokenizer`.
    """

    name: Literal["hf"] = "hf"
    path: Path
    """The folder with `config.json` and `model.safetensors`; a relative path starts at the recipe's."""

    def build_for(self, shapes: Shapes, num_classes: int, vocabulary: int = 0) -> "Classifier":
        """With the folder's weights. ModelError where they are not there, or not for such texts."""
        if list(shapes) != [TOKENS, MASK]:
            raise ModelError(
                f"hf takes the tokens of a text as {TOKENS} and {MASK}, as `source: text` gives them, but the data "
                f"gives {told(shapes)}"
            )
        config = self._config(num_classes)
        self._demand_room(config, shapes[TOKENS][0], vocabulary)
        make = _transformers().AutoModelForSequenceClassification
        try:
            model = make.from_pretrained(str(self.path), config=config, local_files_only=True, dtype="float32")
        except Exception as error:  # whatever the package raises for files that do not fit
            raise ModelError(
                f"{self.path}: transformers cannot load a text classifier of {num_classes} classes from it: "
                f"{type(error).__name__}: {error}"
            ) from error
        return Classifier(model)

    def scaled(self, *, width: float, depth: float) -> Self:
        """ModelError unless both are 1: how a smaller one would look is not known of every model."""
        if (width, depth) != (1, 1):
            raise ModelError(
                f"no student can be derived from {self.path}; name one, such as `{{name: text_encoder, depth: 2}}`"
            )
        return self

    def resolved(self, directory: Path) -> Self:
        """The same with an absolute path; ModelError where there is no model."""
        folder = (directory / self.path.expanduser()).resolve()
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{folder} has no {name}; hf takes a folder that transformers' `save_pretrained` wrote, and "
                    "relative paths start at the recipe's folder"
                )
        return self.model_copy(update={"path": folder})

    def weights(self) -> Path | None:
        """None where the last layer is missing in them."""
        from safetensors import safe_open
        from torch import device

        make: Any = _transformers().AutoModelForSequenceClassification
        with device("meta"):
            wanted = set(make.from_config(self._config(None)).state_dict())
        opened: Any = safe_open
        with opened(self.path / WEIGHTS, framework="pt") as file:
            stored = set(file.keys())
        return self.path / WEIGHTS if wanted <= stored else None

    def source(self) -> str:
        """sha256 of the folder's settings and weights."""
        return fingerprint(*(sha256_of(self.path / name) for name in (CONFIG, WEIGHTS)))

    def _config(self, num_classes: int | None) -> Any:
        try:
            config: Any = _transformers().AutoConfig.from_pretrained(str(self.path), local_files_only=True)
        except Exception as error:  # whatever the package raises for files that do not fit
            raise ModelError(f"{self.path / CONFIG}: transformers cannot read it: {error}") from error
        if num_classes is not None:
            config.num_labels = num_classes
        return config

    def _demand_room(self, config: Any, longest: int, vocabulary: int) -> None:
        places: int = getattr(config, "max_position_embeddings", longest)
        if vocabulary > config.vocab_size or not vocabulary:
            raise ModelError(
                f"{self.path} knows {config.vocab_size} tokens and the data's tokenizer {vocabulary}: it is another "
                f"tokenizer; give `data: {{tokenizer: {self.path}}}`"
            )
        if longest > places:
            raise ModelError(
                f"{self.path} takes {places} tokens and texts have up to {longest}; give `data.max_length: {places}`"
            )


class Classifier(nn.Module):
    """A model of transformers that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token numbers and mask, both (B, N), to logits (B, num_classes)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise MissingDependency("models of the kind `hf:` need transformers: pip install 'potstill[text]'") from error
