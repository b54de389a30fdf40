"""Facts about factorized embeddings: what they reproduce and save, and what is refused by name."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Factorize as FactorizeEdit
from potstill.pipeline.cost import num_parameters
from potstill.pipeline.errors import ArtifactError
from potstill.pipeline.factors import Factors, factored
from potstill.stages.factorization.candidates import left_alone
from potstill.stages.factorization.metric import Metric
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.recovery import Recovery
from tests.support.contexts import context_on
from tests.support.factorization import factors_of, planned
from tests.support.family_data import family_artifact, family_data

UNTRAINED = Recovery(epochs=0)
EMBEDDING = Factors(kind="embedding", ranks=(3,))


def embedding_of_rank(rank: int, words: int = 20, width: int = 8, **settings: Any) -> nn.Embedding:
    draws = torch.Generator().manual_seed(0)
    layer = nn.Embedding(words, width, **settings)
    with torch.no_grad():
        narrow = torch.randn(words, rank, generator=draws)
        if layer.padding_idx is not None:
            narrow[layer.padding_idx] = 0
        layer.weight.copy_(narrow @ torch.randn(rank, width, generator=draws))
    return layer


class Bag(nn.Module):
    """The mean of a text's words, and its class."""

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.words, self.head = words, nn.Linear(words.embedding_dim, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.words(tokens).mean(1))


class TestFactors:
    def test_of_full_rank_give_the_same_words(self) -> None:
        layer = embedding_of_rank(8)
        tokens = torch.arange(20)[None]
        found = factors_of(layer, Factors(kind="embedding", ranks=(8,)))(tokens)
        torch.testing.assert_close(found, layer(tokens), rtol=0, atol=1e-5)

    def test_are_a_narrow_embedding_and_a_linear_layer_without_bias(self) -> None:
        layer = nn.Embedding(20, 8, padding_idx=2, scale_grad_by_freq=True)
        narrow, widen = factored(layer, EMBEDDING, "words")
        assert narrow.weight.shape == (20, 3)
        assert (narrow.padding_idx, narrow.scale_grad_by_freq) == (2, True)
        assert (widen.in_features, widen.out_features, widen.bias) == (3, 8, None)

    def test_padding_stays_zero_to_the_last_bit_and_learns_nothing(self) -> None:
        factors = factors_of(embedding_of_rank(8, padding_idx=2), EMBEDDING)
        tokens = torch.tensor([[2, 1, 2]])
        factors(tokens).square().sum().backward()
        assert not factors(tokens)[0, [0, 2]].any()
        assert factors(tokens)[0, 1].any()
        gradient = factors[0].weight.grad
        assert gradient is not None
        assert not gradient[2].any()
        assert gradient[1].any()

    def test_padding_that_means_something_is_reproduced(self) -> None:
        layer = nn.Embedding(20, 8, padding_idx=2)
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
        found = factors_of(layer, Factors(kind="embedding", ranks=(8,)))(torch.tensor([2]))
        torch.testing.assert_close(found, layer.weight[2:3], rtol=0, atol=1e-5)

    def test_are_of_embeddings_alone_and_an_embedding_has_no_others(self) -> None:
        with pytest.raises(ArtifactError, match="`head`, a Linear, by embedding"):
            factored(nn.Linear(4, 4), EMBEDDING, "head")
        with pytest.raises(ArtifactError, match="`words`, a Embedding, by svd"):
            factored(nn.Embedding(4, 4), Factors(kind="svd", ranks=(2,)), "words")

    def test_in_the_metric_of_their_output_frequent_words_come_nearer(self) -> None:
        layer = nn.Embedding(40, 8)
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
        frequency = torch.full((40,), 0.001, dtype=torch.float64)
        frequency[:4] = 0.24

        def error(metric: Metric | None) -> Tensor:
            return (factors_of(layer, EMBEDDING, metric)(torch.arange(40)) - layer.weight).square().sum(1).detach()

        plain, weighted = error(None), error(Metric.of_moment(frequency))
        assert weighted[:4].sum() < 0.5 * plain[:4].sum()
        assert (weighted * frequency).sum() < (plain * frequency).sum()


class TestWhereItPays:
    INPUTS = {"tokens": torch.zeros(1, 5, dtype=torch.long)}  # noqa: RUF012 - nothing changes it

    def test_is_counted_in_parameters(self) -> None:
        (plan,) = planned(Bag(embedding_of_rank(3)), self.INPUTS, 1 - 1e-6, 1, kinds=("embedding",))
        assert plan.factors == EMBEDDING
        assert plan.pays
        fact = plan.fact()
        assert (fact["parameters_before"], fact["parameters_after"]) == (20 * 8, 20 * 3 + 3 * 8)
        assert (fact["macs_before"], fact["macs_after"]) == (0, 5 * 3 * 8)

    def test_an_embedding_whose_factors_are_no_smaller_stays_whole(self) -> None:
        (plan,) = planned(Bag(embedding_of_rank(7)), self.INPUTS, 1 - 1e-6, 1, kinds=("embedding",))
        assert plan.fact()["decision"] == "kept: its factors would not cost less"

    def test_one_that_renormalises_its_rows_is_left_alone_by_name(self) -> None:
        model = Bag(nn.Embedding(20, 8, max_norm=1.0))
        reasons = left_alone(model, self.INPUTS, ("embedding",))
        assert "`max_norm` rescales whole rows" in reasons["words"]
        assert planned(model, self.INPUTS, 0.1, 1, kinds=("embedding",)) == []

    def test_one_that_shares_its_weight_with_the_head_stays_whole(self) -> None:
        model = Bag(embedding_of_rank(2, words=3))
        model.head.weight = model.words.weight
        (plan,) = planned(model, self.INPUTS, 0.1, 1, kinds=("embedding",))
        assert plan.fact()["decision"] == "kept: shares its weight with another layer"

    def test_is_not_split_unless_its_kind_is_asked_for(self) -> None:
        model = Bag(embedding_of_rank(3))
        assert [plan.path for plan in planned(model, self.INPUTS, 0.9, 1)] == ["head"]
        assert left_alone(model, self.INPUTS, ("svd",)) == {"words": "only `kinds` of embedding are for it"}

    @pytest.mark.parametrize(
        "settings", [{"keep": Keep(macs=0.5)}, {"keep": Keep(energy=0.5), "accept": "faster"}], ids=str
    )
    def test_what_a_look_up_does_not_cost_is_refused(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=r"embedding save bytes .* `kinds: \[embedding\]`"):
            Factorize(kinds=("svd", "embedding"), **settings)


class TestStage:
    @pytest.mark.parametrize("metric", ["weights", "outputs"])
    def test_comes_back_from_disk_bit_for_bit(self, metric: Any, tmp_path: Path) -> None:
        data = family_data("text_encoder")
        artifact = family_artifact("text_encoder", data)
        context = context_on(data, tmp_path / "checkpoints")
        stage = Factorize(
            keep=Keep(ratio=0.6),
            kinds=("embedding",),
            metric=metric,
            round_to=2,
            ignore=("positions",),
            recover=UNTRAINED,
        )
        factorized = stage.run(artifact, context)
        (edit,) = factorized.blueprint.edits
        assert isinstance(edit, FactorizeEdit)
        assert list(edit.layers) == ["words"]
        facts = {fact["path"]: fact for fact in cast(list[dict[str, Any]], context.journal.facts["layers"])}
        assert facts["words"]["parameters_after"] <= 0.6 * facts["words"]["parameters_before"]
        assert facts["positions"]["decision"] == "kept: named in `ignore`"
        saved = num_parameters(artifact.model) - num_parameters(factorized.model)
        assert saved == facts["words"]["parameters_before"] - facts["words"]["parameters_after"]
        factorized.save(tmp_path / "artifact", data.example())
        batch = data.example(4).values()
        with torch.no_grad():
            reloaded = Artifact.load(tmp_path / "artifact").model(*batch)
            assert torch.equal(reloaded, factorized.model(*batch))
