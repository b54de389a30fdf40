"""Models of transformers, tiny and with random weights, saved by the tests themselves."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from potstill.pipeline.errors import ModelError
from potstill.pipeline.models import build, check_padding, resolve, source_of
from potstill.pipeline.networks.hf import HuggingFace
from potstill.pipeline.quantization import capture
from tests.pipeline.networks.test_text_encoder import texts

SHAPES = {"input_ids": (24,), "attention_mask": (24,)}

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers imports whatever it finds, with notices of its own


def saved(folder: Path, *, classifies: bool = True) -> HuggingFace:
    transformers = pytest.importorskip("transformers", reason="needs the text extra")
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=3,
    )
    torch.manual_seed(0)
    made = (transformers.BertForSequenceClassification if classifies else transformers.BertModel)(config)
    made.save_pretrained(folder)
    return HuggingFace(path=folder)


@pytest.fixture
def bert(tmp_path: Path) -> HuggingFace:
    """A classifier of three classes."""
    return saved(tmp_path / "bert")


def test_gives_the_logits_of_the_saved_model(bert: HuggingFace) -> None:
    transformers = pytest.importorskip("transformers")
    inputs = texts(5, 20, 9)
    ours = build(bert, SHAPES, 3, 100).eval()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(bert.path).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(*inputs.values()), theirs(**inputs).logits)
    check_padding(ours, inputs)


def test_is_captured_with_a_free_length(bert: HuggingFace) -> None:
    model = build(bert, SHAPES, 3, 100).eval()
    graph = capture(model, texts(5, 9))
    with torch.no_grad():
        for inputs in (texts(24), texts(3, 17, 6)):
            torch.testing.assert_close(graph(*inputs.values()), model(*inputs.values()))


def test_brings_weights_where_its_last_layer_was_trained(bert: HuggingFace, tmp_path: Path) -> None:
    bare = saved(tmp_path / "bare", classifies=False)
    assert bert.weights() == bert.path / "model.safetensors"
    assert bare.weights() is None
    assert build(bare, SHAPES, 2, 100)(*texts(5).values()).shape == (1, 2)


def test_has_a_fingerprint_of_its_weights(bert: HuggingFace) -> None:
    before = source_of(bert)
    tensors = load_file(bert.path / "model.safetensors")
    tensors["classifier.bias"] += 1
    save_file(tensors, bert.path / "model.safetensors", metadata={"format": "pt"})
    assert source_of(bert) != before


def test_is_found_from_the_recipes_folder(bert: HuggingFace, tmp_path: Path) -> None:
    assert resolve(HuggingFace(path=Path("bert")), tmp_path) == bert
    with pytest.raises(ModelError, match=r"has no config\.json; hf takes a folder"):
        resolve(HuggingFace(path=Path("nothing")), tmp_path)


def test_says_what_does_not_fit(bert: HuggingFace) -> None:
    with pytest.raises(ModelError, match=r"knows 100 tokens and the data's tokenizer 200.*give `data: \{tokenizer: "):
        build(bert, SHAPES, 3, 200)
    with pytest.raises(ModelError, match=r"takes 32 tokens and texts have up to 64; give `data.max_length: 32`"):
        build(bert, {"input_ids": (64,), "attention_mask": (64,)}, 3, 100)
    with pytest.raises(ModelError, match="no student can be derived"):
        bert.scaled(width=0.5, depth=1)
    with pytest.raises(ModelError, match=r"cannot load a text classifier of 5 classes"):
        build(bert, SHAPES, 5, 100)
