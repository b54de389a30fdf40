"""Facts about the teacher's stored outputs: whose they are, when they serve, and when they are refused."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.augmentation import View
from potstill.pipeline.data import Batch, Dataset
from potstill.pipeline.errors import CacheError
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.teacher_cache import CacheSettings, from_top_k
from potstill.stages.distill import Distill
from potstill.stages.stage import Context
from tests.support.random_texts import encoder_artifact, random_texts

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


@pytest.fixture
def context(new_context: NewContext, new_data: Callable[..., Dataset]) -> Context:
    """On data of three augmented views."""
    return replace(new_context(), data=new_data(augment=("random_crop", "flip"), views=3))


def shuffled(context: Context, epoch: int, count: int = 24) -> Batch:
    """A batch as training takes it: samples in random order, augmented."""
    order = torch.randperm(len(context.data.train), generator=torch.Generator().manual_seed(epoch))
    return context.data.train.batch(order[:count], view=context.data.view(context.seed, epoch))


def live(artifact: Artifact, batch: Batch) -> Tensor:
    with torch.no_grad():
        return artifact.model(*batch.inputs.values())


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.npy"))


class TestWhatIsServed:
    @pytest.mark.parametrize("epoch", [0, 1, 2, 3, 7])
    def test_is_the_live_teachers_answer_to_exactly_these_augmented_samples(
        self, epoch: int, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        """The well-known bug, outputs stored by their place in a batch while the loader shuffles, fails this."""
        artifact = new_artifact()
        teacher = Teacher(artifact, CacheSettings(), tmp_path)
        for earlier in range(epoch):
            teacher.logits(shuffled(context, earlier), context)
        batch = shuffled(context, epoch)
        served = teacher.logits(batch, context)
        torch.testing.assert_close(served, live(artifact, batch), rtol=1e-4, atol=1e-5)
        by_place = live(artifact, shuffled(context, 0))
        if epoch:
            assert not torch.allclose(served, by_place, rtol=1e-2, atol=1e-3)

    def test_does_not_depend_on_who_asked_first(
        self, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        batch = shuffled(context, 1)
        first = Teacher(new_artifact(), CacheSettings(), tmp_path / "a").logits(batch, context)
        other = Teacher(new_artifact(), CacheSettings(), tmp_path / "b")
        other.logits(shuffled(context, 4, count=5), context)
        assert torch.equal(other.logits(batch, context), first)

    def test_is_maps_too_where_they_are_stored(
        self, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        teacher = Teacher(new_artifact(), CacheSettings(maps=True), tmp_path)
        batch = shuffled(context, 2)
        served = teacher.outputs(batch, {"layer2", "linear:input"}, context)
        expected = teacher.live_outputs(batch, {"layer2", "linear:input"}, context)
        assert set(served.maps) == {"layer2", "linear:input"}
        for tap, tensor in expected.maps.items():
            torch.testing.assert_close(served.maps[tap], tensor, rtol=1e-4, atol=1e-5)

    def test_is_the_live_teachers_where_every_epoch_has_its_own_view(
        self, context: Context, new_data: Callable[..., Dataset], new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        fresh = replace(context, data=new_data(augment=("flip",)))
        teacher = Teacher(new_artifact(), CacheSettings(), tmp_path)
        batch = shuffled(fresh, 0)
        torch.testing.assert_close(teacher.logits(batch, fresh), live(new_artifact(), batch), rtol=1e-4, atol=1e-5)
        assert files(tmp_path) == []
        assert teacher.usage().asked == 0

    def test_in_half_precision_is_what_is_stored_also_when_just_computed(
        self, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        batch = shuffled(context, 0)
        computed, read = (
            Teacher(new_artifact(), CacheSettings(dtype="fp16"), tmp_path).logits(batch, context) for _ in range(2)
        )
        assert torch.equal(computed, read)
        assert torch.equal(computed, computed.half().float())
        assert np.load(files(tmp_path)[0]).dtype == np.float16

    @pytest.mark.parametrize("memory_bytes", [0, 2**20])
    def test_comes_from_memory_or_a_mapped_file_alike(
        self, memory_bytes: int, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        settings = CacheSettings(memory_bytes=memory_bytes)
        batch = shuffled(context, 0)
        served = Teacher(new_artifact(), settings, tmp_path).logits(batch, context)
        torch.testing.assert_close(served, live(new_artifact(), batch), rtol=1e-4, atol=1e-5)


class TestTopK:
    def test_keeps_the_largest_probabilities_and_spreads_the_rest(self) -> None:
        logits = torch.tensor([[4.0, 1.0, 0.0, -1.0, 2.0]], dtype=torch.float64)
        p = logits.softmax(1)[0].tolist()
        values, classes = logits.log_softmax(1).topk(2)
        found = from_top_k(values, classes, 5).softmax(1)[0].tolist()
        rest = (1 - p[0] - p[4]) / 3
        assert found == pytest.approx([p[0], rest, rest, rest, p[4]], rel=1e-5)

    def test_of_all_classes_is_the_whole_distribution(self) -> None:
        logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        values, classes = logits.log_softmax(1).topk(4)
        torch.testing.assert_close(from_top_k(values, classes, 4).softmax(1), logits.softmax(1))

    def test_is_served_from_files(self, context: Context, new_artifact: NewArtifact, tmp_path: Path) -> None:
        batch = shuffled(context, 0)
        served = Teacher(new_artifact(), CacheSettings(top_k=2), tmp_path).logits(batch, context).softmax(1)
        expected = live(new_artifact(), batch).softmax(1)
        largest = expected.topk(2)
        torch.testing.assert_close(served.gather(1, largest.indices), largest.values, rtol=1e-4, atol=1e-5)
        assert {path.name for path in files(tmp_path)} == {"logits_classes-view0.npy", "logits_values-view0.npy"}


class TestReuse:
    def test_a_second_run_computes_nothing(self, context: Context, new_artifact: NewArtifact, tmp_path: Path) -> None:
        stage = Distill.model_validate({"student": {"from": "teacher"}, "epochs": 4})
        facts = []
        for seed in (1, 2):
            each = replace(context, seed=seed, teacher=Teacher(new_artifact(), CacheSettings(), tmp_path))
            checkpoints = tmp_path / f"checkpoints-{seed}"
            checkpoints.mkdir()
            stage.run(new_artifact(), replace(each, checkpoints=checkpoints))
            facts.append(dict(each.journal.facts["teacher cache"]))
        samples = len(context.data.train)
        assert [fact["computed"] for fact in facts] == [3 * samples, 0]
        assert [fact["asked"] for fact in facts] == [4 * samples, 4 * samples]
        assert facts[0]["hit rate"] == pytest.approx(0.25)
        assert facts[1]["hit rate"] == 1

    @pytest.mark.parametrize("changed", ["teacher", "data", "augmentation", "settings", "precision"])
    def test_never_mixes_what_differs(
        self,
        changed: str,
        context: Context,
        new_data: Callable[..., Dataset],
        new_artifact: NewArtifact,
        tmp_path: Path,
    ) -> None:
        Teacher(new_artifact(), CacheSettings(), tmp_path).logits(shuffled(context, 0), context)
        artifact, settings, other = new_artifact(), CacheSettings(), context
        match changed:
            case "teacher":
                artifact = new_artifact(seed=1)
            case "data":
                other = replace(context, data=new_data(samples=160, augment=("random_crop", "flip"), views=3))
            case "augmentation":
                other = replace(context, data=new_data(augment=("flip",), views=3))
            case "settings":
                settings = CacheSettings(dtype="fp16")
            case _:
                other = replace(context, precision="bf16")
        Teacher(artifact, settings, tmp_path).logits(shuffled(other, 0), other)
        assert len({path.parent for path in files(tmp_path)}) == 2


class TestRefusal:
    @pytest.fixture
    def stored(self, context: Context, new_artifact: NewArtifact, tmp_path: Path) -> Path:
        Teacher(new_artifact(), CacheSettings(), tmp_path).logits(shuffled(context, 0), context)
        (file,) = files(tmp_path)
        return file

    def ask(self, context: Context, artifact: Artifact, folder: Path) -> Tensor:
        return Teacher(artifact, CacheSettings(), folder).logits(shuffled(context, 0), context)

    def test_of_outputs_under_the_name_of_another_teacher(
        self, stored: Path, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        label = json.loads(stored.with_suffix(".json").read_text())
        label["key"]["teacher"] = "0" * 64
        stored.with_suffix(".json").write_text(json.dumps(label))
        with pytest.raises(CacheError, match=r"of another teacher.*delete"):
            self.ask(context, new_artifact(), tmp_path)

    @pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
    def test_of_damaged_files(
        self, damage: str, stored: Path, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        content = bytearray(stored.read_bytes())
        content[-3] ^= 0xFF
        if damage == "gone":
            stored.unlink()
        else:
            stored.write_bytes(content[:-10] if damage == "cut" else content)
        with pytest.raises(CacheError, match=r"damaged.*delete"):
            self.ask(context, new_artifact(), tmp_path)

    def test_of_outputs_that_the_teacher_does_not_give(
        self, stored: Path, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        import hashlib

        array = np.load(stored)
        np.save(stored, array + 1)
        label = json.loads(stored.with_suffix(".json").read_text())
        label["sha256"] = hashlib.sha256(stored.read_bytes()).hexdigest()
        stored.with_suffix(".json").write_text(json.dumps(label))
        with pytest.raises(CacheError, match="other outputs now"):
            self.ask(context, new_artifact(), tmp_path)

    def test_of_more_than_may_be_stored(self, context: Context, new_artifact: NewArtifact, tmp_path: Path) -> None:
        teacher = Teacher(new_artifact(), CacheSettings(max_bytes=1000), tmp_path)
        needed = 3 * len(context.data.train) * 4 * 4
        with pytest.raises(CacheError, match=rf"{needed:,} bytes.*max_bytes"):
            teacher.logits(shuffled(context, 0), context)
        assert files(tmp_path) == []


class TestFiles:
    def test_of_others_go_when_there_is_no_room_the_longest_unused_first(
        self, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        import os

        folders: list[Path] = []
        one = 4 * 4 * len(context.data.train) * 3
        for seed in range(3):
            settings = CacheSettings(max_bytes=3 * one)
            before = {path.parent for path in files(tmp_path)}
            teacher = Teacher(new_artifact(seed=seed), settings, tmp_path)
            for epoch in range(3):
                teacher.logits(shuffled(context, epoch), context)
            (folder,) = {path.parent for path in files(tmp_path)} - before
            os.utime(folder, (seed, seed))
            folders.append(folder)
        assert not folders[0].exists()
        assert folders[-1].exists()

    def test_of_a_killed_run_leave_nothing_torn(
        self, context: Context, new_artifact: NewArtifact, tmp_path: Path
    ) -> None:
        teacher = Teacher(new_artifact(), CacheSettings(), tmp_path)
        model = teacher.model(context)
        calls = 0

        def stop(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt

        handle = model.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            teacher.logits(shuffled(context, 0), context)
        handle.remove()
        assert files(tmp_path) == []
        batch = shuffled(context, 0)
        served = Teacher(new_artifact(), CacheSettings(), tmp_path).logits(batch, context)
        torch.testing.assert_close(served, live(new_artifact(), batch), rtol=1e-4, atol=1e-5)

    def test_without_a_folder_there_are_none(self, context: Context, new_artifact: NewArtifact) -> None:
        teacher = Teacher(new_artifact())
        batch = shuffled(context, 0)
        torch.testing.assert_close(teacher.logits(batch, context), live(new_artifact(), batch), rtol=1e-4, atol=1e-5)
        assert teacher.usage().computed == len(context.data.train)


class TestViews:
    def test_look_the_same_in_any_batch_and_order(self, context: Context) -> None:
        split, view = context.data.train, View(0, 1)
        one = split.batch(torch.tensor([5, 9, 2]), view=view).inputs["image"]
        other = split.batch(torch.tensor([2, 100, 5]), view=view).inputs["image"]
        assert torch.equal(one[0], other[2])
        assert torch.equal(one[2], other[0])

    def test_repeat_after_their_number_in_every_training(self, context: Context) -> None:
        assert context.data.view(1, 0) == context.data.view(2, 3) == View(0, 0)
        assert context.data.view(1, 2) == View(0, 2)

    def test_differ_from_each_other(self, context: Context) -> None:
        index = torch.arange(32)
        images = [context.data.train.batch(index, view=View(0, number)).inputs["image"] for number in range(3)]
        assert not torch.equal(images[0], images[1])
        assert not torch.equal(images[1], images[2])

    def test_without_a_number_are_new_in_every_epoch_of_every_training(self, new_data: Callable[..., Dataset]) -> None:
        data = new_data(augment=("flip",))
        assert data.view(1, 0) == View(1, 0)
        assert data.view(1, 5) == View(1, 5)
        assert new_data().view(1, 5) is None

    def test_change_what_a_run_is_made_from(self, new_data: Callable[..., Dataset]) -> None:
        prints = {new_data(augment=("flip",), views=views).fingerprint for views in (None, 2, 3)}
        assert len(prints) == 3


class TestTheStrongView:
    @pytest.fixture
    def batch(self, context: Context) -> Batch:
        return context.data.train.batch(torch.arange(160), view=View(0, 1))

    def test_is_of_the_same_samples_and_always_the_same(self, context: Context, batch: Batch) -> None:
        strong = context.data.train.strong(batch)
        assert torch.equal(strong.target, batch.target)
        assert torch.equal(strong.index, batch.index)
        assert torch.equal(strong.inputs["image"], context.data.train.strong(batch).inputs["image"])
        part = context.data.train.strong(context.data.train.batch(torch.tensor([7, 3]), view=View(0, 1)))
        torch.testing.assert_close(part.inputs["image"], strong.inputs["image"][[7, 3]], rtol=0, atol=1e-6)

    def test_is_another_picture_within_the_datas_range(self, context: Context, batch: Batch) -> None:
        strong = context.data.train.strong(batch).inputs["image"]
        weak = batch.inputs["image"]
        assert strong.shape == weak.shape
        changed = (strong != weak).flatten(1).any(1)
        assert bool(changed.all())
        everything = context.data.train.batch(torch.arange(len(context.data.train))).inputs["image"]
        low, high = everything.min(), everything.max()
        assert float(strong.min()) >= float(low) - 1e-4
        assert float(strong.max()) <= float(high) + 1e-4

    def test_leaves_the_weak_one_alone(self, context: Context, batch: Batch) -> None:
        before = deepcopy(batch.inputs["image"])
        context.data.train.strong(batch)
        assert torch.equal(context.data.train.batch(batch.index, view=batch.view).inputs["image"], before)


def test_maps_of_samples_of_unequal_length_are_not_stored(new_context: NewContext) -> None:
    data = random_texts()
    artifact = encoder_artifact(data)
    teacher = Teacher(artifact, CacheSettings(maps=True))
    batch = data.train.batch(torch.arange(4))
    context = replace(new_context(), data=data)
    assert teacher.outputs(batch, (), context).logits.shape == (4, 2)
    with pytest.raises(CacheError, match="samples are of unequal length"):
        teacher.outputs(batch, ("blocks.0",), context)
