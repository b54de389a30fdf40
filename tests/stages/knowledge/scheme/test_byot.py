"""Facts about heads that learn from the end of their own network."""

import math
from collections.abc import Callable

import pytest
import torch
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.anatomy import Anatomy
from potstill.stages.knowledge.method import Observation, Term
from potstill.stages.knowledge.objective import Distillation, DistillationObjective, servants
from potstill.stages.knowledge.pair import Pair
from potstill.stages.knowledge.scheme.byot import BeYourOwnTeacher, bottleneck
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def pair_of(artifact: Artifact, context: Context) -> Pair:
    anatomy = Anatomy(artifact.model, context.data.example())
    return Pair("byot", anatomy, anatomy, context, 0, artifact.blueprint, servants)


def probabilities(row: Tensor, temperature: float) -> list[float]:
    exponentials = [math.exp(float(z) / temperature) for z in row]
    return [each / sum(exponentials) for each in exponentials]


class TestBottleneck:
    @pytest.mark.parametrize(
        ("shape", "deepest"),
        [
            ((2, 8, 16, 16), (2, 32, 4, 4)),
            ((2, 8, 15, 9), (2, 32, 4, 3)),
            ((2, 8, 16, 16), (2, 32, 1, 1)),
            ((2, 8, 4, 4), (2, 8, 4, 4)),
            ((2, 17, 12), (2, 17, 12)),
            ((2, 16, 12), (2, 4, 24)),
            ((2, 12), (2, 24)),
        ],
    )
    def test_leads_to_the_deepest_shape(self, shape: tuple[int, ...], deepest: tuple[int, ...]) -> None:
        found = bottleneck(shape, deepest)(torch.randn(3, *shape[1:]))
        assert tuple(found.shape) == (3, *deepest[1:])

    def test_bends_even_where_the_shapes_are_equal(self) -> None:
        """Without an activation, a head would be a linear map of what it stands on."""
        narrow = bottleneck((2, 4, 3, 3), (2, 4, 3, 3)).eval()
        one, other = draws(2, 4, 3, 3, dtype=torch.float32), draws(2, 4, 3, 3, seed=1, dtype=torch.float32)
        bent = narrow(one + other) - narrow(one) - narrow(other) + narrow(torch.zeros_like(one))
        assert bent.abs().max().item() > 1e-3


class Case:
    """A term on a ResNet's maps, and one observation of them."""

    def __init__(self, artifact: Artifact, context: Context, **settings: float) -> None:
        self.settings = BeYourOwnTeacher.model_validate(settings)
        self.term = self.settings.term(pair_of(artifact, context)).double()
        self.seen = self.observed()

    def observed(self) -> Observation:
        shapes = [match.student_shape for match in self.term.matches]
        self.maps = [draws(5, *shape[1:], seed=seed).relu() for seed, shape in enumerate(shapes)]
        names = [match.student for match in self.term.matches]
        return observation(
            student=draws(5, 4, seed=9),
            student_maps=dict(zip(names, self.maps, strict=True)),
            target=torch.tensor([3, 0, 1, 2, 1]),
        )


class TestHeads:
    def test_stand_at_every_stage_but_the_last(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        term: Term = BeYourOwnTeacher().term(pair_of(new_artifact(), new_context()))
        assert [match.student for match in term.matches] == ["layer1", "layer2", "layer3"]
        assert [module.out_features for module in term.modules() if isinstance(module, nn.Linear)] == [4, 4]

    def test_lower_the_sum_of_the_three_losses(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        case = Case(new_artifact(), new_context(), temperature=3, alpha=0.3, beta=0.01)
        bottlenecks, classifiers = case.term.bottlenecks, case.term.classifiers  # type: ignore[union-attr]
        expected = [0.0] * 5
        for narrow, classifier, maps in zip(bottlenecks, classifiers, case.maps[:-1], strict=True):
            features = narrow(maps).detach()
            logits = classifier(features.mean((2, 3))).detach()
            for sample in range(5):
                label = int(case.seen.batch.target[sample])
                labels_loss = -math.log(probabilities(logits[sample], 1.0)[label])
                deepest = probabilities(case.seen.student.logits[sample], 3.0)
                head = probabilities(logits[sample], 3.0)
                divergence = sum(p * (math.log(p) - math.log(q)) for p, q in zip(deepest, head, strict=True))
                distance = 0.0
                pairs = zip(features[sample].flatten().tolist(), case.maps[-1][sample].flatten().tolist(), strict=True)
                for mine, last in pairs:
                    distance += (mine - last) ** 2
                expected[sample] += 0.7 * labels_loss + 0.3 * 9 * divergence + 0.01 * distance
        assert case.term(case.seen).tolist() == pytest.approx(expected, rel=1e-9)

    def test_teach_the_earlier_stages_and_leave_the_deepest_alone(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        student, context = new_artifact(), new_context()
        given = Distillation.model_validate({"knowledge": ["byot"]})
        objective = DistillationObjective(given, student.model, student.blueprint, context)
        batch = context.data.train.batch(torch.arange(8))
        terms = objective.terms(student.model.train(), batch, Moment(0, 10, 0))
        assert set(terms) == {"task", "byot"}
        terms["byot"].backward()
        for name, parameter in student.model.named_parameters():
            assert (parameter.grad is None) == name.startswith(("layer3", "linear")), name
        assert all(parameter.grad is not None for parameter in objective.parameters())

    def test_need_two_layers(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"`byot`: .*needs 2 or more.*Methods that can serve"):
            BeYourOwnTeacher(layers="layer3").term(pair_of(new_artifact(), new_context()))

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_are_finite_with_their_gradients(
        self, case: str, dtype: torch.dtype, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        term = BeYourOwnTeacher().term(pair_of(new_artifact(), new_context()))
        maps = {match.student: HARD_CASES[case](4, *match.student_shape[1:]) for match in term.matches}

        def loss(first: Tensor) -> Tensor:
            return term(observation(student=HARD_CASES[case](4, 4), student_maps={**maps, "layer1": first}))

        assert finite_gradients(loss, maps["layer1"], dtype)
