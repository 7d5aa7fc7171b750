"""Where training is computed: which devices, in which numbers, and that several of them do what one does."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

import toxicity.fine_tuning
from tests.conftest import CARDS, manifest_of
from tests.two_devices import COMMENTS, MAX_LENGTH, PLAN
from toxicity.classifier import Classifier, build_classifier
from toxicity.devices import BFLOAT16, CPU_INFO, FLOAT16, Devices, answers_in_bfloat16, share_gpu_memory, training_devices
from toxicity.fine_tuning import HEAD_RATE_FACTOR, LARGEST_SCALE, LossScale, Progress, TrainingPlan, fine_tune
from toxicity.fingerprint import HEAD
from toxicity.loading import golden_outputs, load_version
from toxicity.predicting import FloatArray
from toxicity.settings import Settings
from toxicity.versions import ProjectVersions

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).parents[1]
TEXTS = [comment.text for comment in COMMENTS]
CPU = ("CPU:0",)


def flags(folder: Path, *found: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: fpu {' '.join(found)} sse2\n\nbugs\t\t: spectre_v1\n")
    return file


def test_without_a_gpu_training_is_on_the_cpu(tmp_path: Path) -> None:
    assert training_devices([], flags(tmp_path)) == Devices(CPU, None)


@pytest.mark.parametrize("found", [("avx512_bf16",), ("amx_bf16", "amx_tile"), ("avx2", "avx512_bf16", "amx_bf16")])
def test_a_cpu_that_has_bfloat16_uses_it(found: tuple[str, ...], tmp_path: Path) -> None:
    assert training_devices([], flags(tmp_path, *found)) == Devices(CPU, BFLOAT16)


@pytest.mark.parametrize("found", [(), ("avx512f", "avx512_vnni"), ("avx512_bf16_of_tomorrow",)])
def test_a_cpu_that_has_no_bfloat16_uses_float32(found: tuple[str, ...], tmp_path: Path) -> None:
    assert training_devices([], flags(tmp_path, *found)).precision is None


def test_a_system_that_tells_nothing_of_its_cpu_uses_float32(tmp_path: Path) -> None:
    assert training_devices([], tmp_path / "none") == Devices(CPU, None)


def test_on_gpus_answers_are_float32_whatever_the_cpu_has(tmp_path: Path) -> None:
    able = flags(tmp_path, "avx512_bf16")
    assert answers_in_bfloat16([], able)
    assert not answers_in_bfloat16([tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")], able)
    assert not answers_in_bfloat16([], tmp_path / "none")


def test_every_gpu_is_used_in_float16(tmp_path: Path) -> None:
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(3)]
    found = training_devices(gpus, flags(tmp_path, "avx512_bf16"))
    assert found == Devices(("GPU:0", "GPU:1", "GPU:2"), FLOAT16)


def test_every_gpu_takes_memory_only_as_it_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, bool]] = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, growth: seen.append((gpu, growth)))
    assert share_gpu_memory() == ["GPU:0", "GPU:1"]
    assert seen == [("GPU:0", True), ("GPU:1", True)]


def test_one_device_needs_no_strategy() -> None:
    assert Devices(CPU, None).strategy().num_replicas_in_sync == 1
    assert Devices((), None).strategy() is tf.distribute.get_strategy()


@pytest.mark.parametrize(("precision", "name"), [(None, "float32"), (FLOAT16, "mixed float16"), (BFLOAT16, "mixed bfloat16")])
def test_a_classifier_says_in_which_numbers_it_is_trained(
    precision: str | None, name: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    assert build(tiny_encoder, tmp_path, Devices(CPU, precision)).precision() == name
    assert build(tiny_encoder, tmp_path, None).precision() == "float32"


def build(encoder: Path, folder: Path, devices: Devices | None) -> Classifier:
    return build_classifier(str(encoder), folder, MAX_LENGTH, devices)


def switched_on() -> set[str]:
    return {name for name, on in tf.config.optimizer.get_experimental_options().items() if on and name in (FLOAT16, BFLOAT16)}


@pytest.mark.parametrize("precision", [FLOAT16, BFLOAT16])
def test_mixed_precision_is_on_inside_alone_and_ends_with_an_error_too(precision: str) -> None:
    devices = Devices(CPU, precision)
    assert switched_on() == set()
    with devices.mixed_precision():
        assert switched_on() == {precision}
    assert switched_on() == set()
    with pytest.raises(InterruptedError), devices.mixed_precision():
        raise InterruptedError
    assert switched_on() == set()
    with Devices(CPU, None).mixed_precision():
        assert switched_on() == set()


def products() -> tuple[FloatArray, Any]:
    """A large product as a graph has it, and as float64 has it."""
    left, right = (np.random.default_rng(seed).normal(0, 1, (64, 256)).astype(np.float32) for seed in (0, 1))
    product: FloatArray = tf.function(lambda a, b: tf.matmul(a, b, transpose_b=True))(left, right).numpy()
    return product, left.astype(np.float64) @ right.T


@pytest.mark.skipif(training_devices([], CPU_INFO).precision is None, reason="this CPU has no bfloat16")
def test_products_are_coarser_inside_and_exact_again_outside() -> None:
    with Devices(CPU, BFLOAT16).mixed_precision():
        coarse, exact = products()
    assert 1e-3 < np.abs(coarse - exact).max() < 1
    fine, _ = products()
    assert np.abs(fine - exact).max() < 1e-4


@pytest.mark.parametrize("precision", [FLOAT16, BFLOAT16])
def test_predictions_during_and_after_training_in_mixed_precision_are_plain_float32(
    precision: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    mixed, plain = build(tiny_encoder, tmp_path, Devices(CPU, precision)), build(tiny_encoder, tmp_path, None)

    def predicts_the_same() -> float:
        plain.set_weights(mixed.weights())
        np.testing.assert_array_equal(mixed.predict(TEXTS), plain.predict(TEXTS))
        watched.append(-float(len(watched)))
        return watched[-1]

    watched: list[float] = []
    losses: list[float] = []
    fine_tune(mixed, COMMENTS, PLAN, lambda progress: losses.append(progress.loss), predicts_the_same)
    predicts_the_same()
    assert len(watched) == PLAN.epochs + 1
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    assert {value.dtype for value in mixed.weights().values()} == {np.dtype(np.float32)}


GRADIENTS = (np.array([0.5, -2.0], np.float32), np.array([[3.0]], np.float32))


def unscaled(scale: LossScale, *spoilt: float) -> list[Any]:
    """What comes of gradients of a loss that was scaled; `spoilt` stands at the end of the last one."""
    factor = float(scale.value.numpy())
    scaled = [gradient * np.float32(factor) for gradient in GRADIENTS]
    return [each.numpy() for each in scale.unscaled([scaled[0], np.append(scaled[1], np.array(spoilt, np.float32))])]


def test_scaled_gradients_come_back_as_they_were() -> None:
    scale = LossScale()
    assert scale.value.numpy() == LARGEST_SCALE
    found = unscaled(scale)
    np.testing.assert_allclose(found[0], GRADIENTS[0])
    np.testing.assert_allclose(found[1], GRADIENTS[1][0])


@pytest.mark.parametrize("overflow", [float("inf"), float("-inf"), float("nan")])
def test_gradients_that_overflow_count_as_nought_and_halve_the_scale(overflow: float) -> None:
    scale = LossScale()
    assert not any(each.any() for each in unscaled(scale, overflow))
    assert scale.value.numpy() == LARGEST_SCALE / 2
    assert all(each.any() for each in unscaled(scale))
    assert scale.value.numpy() == LARGEST_SCALE / 2
    for _ in range(40):
        unscaled(scale, overflow)
    assert scale.value.numpy() == 1


def test_so_many_good_steps_in_a_row_double_the_scale_up_to_its_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toxicity.fine_tuning, "GROWTH_STEPS", 3)
    scale = LossScale()
    seen = []
    for step in range(15):
        unscaled(scale, *[float("inf")] if step in (0, 1, 4) else [])
        seen.append(LARGEST_SCALE / scale.value.numpy())
    assert seen == [2, 4, 4, 4, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1]
    unscaled(scale)
    unscaled(scale)
    assert scale.value.numpy() == LARGEST_SCALE


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[LossScale]:
    """The loss scales that training makes."""
    made: list[LossScale] = []

    class Noted(LossScale):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(toxicity.fine_tuning, "LossScale", Noted)
    return made


def test_loss_scaling_changes_nothing_about_what_is_learned(tiny_encoder: Path, tmp_path: Path, scales: list[LossScale]) -> None:
    learned = {}
    for precision in (None, FLOAT16):
        classifier = build(tiny_encoder, tmp_path, Devices(CPU, precision))
        fine_tune(classifier, COMMENTS, PLAN)
        learned[precision] = classifier.weights()
    assert len(scales) == 1
    for name, value in learned[None].items():
        np.testing.assert_allclose(learned[FLOAT16][name], value, atol=1e-5, err_msg=name)


def test_a_step_whose_gradients_overflow_changes_no_weight_and_training_goes_on(
    tiny_encoder: Path, tmp_path: Path, scales: list[LossScale]
) -> None:
    classifier = build(tiny_encoder, tmp_path, Devices(CPU, FLOAT16))
    before = classifier.weights()
    unchanged: list[bool] = []

    def report(progress: Progress) -> None:
        nonlocal before
        after = classifier.weights()
        unchanged.append(all(np.array_equal(after[name], before[name]) for name in after))
        before = after
        if progress.step in (2, 3, 6):  # so the next one overflows
            scales[0].value.assign(float("inf"))

    fine_tune(classifier, COMMENTS, replace(PLAN, epochs=5), report)
    assert [step for step, same in enumerate(unchanged, 1) if same] == [3, 4, 7]
    assert classifier.is_finite()


def test_steps_that_overflow_do_not_count_in_the_optimizers_bias_correction(
    tiny_encoder: Path, tmp_path: Path, scales: list[LossScale], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity.fine_tuning, "LARGEST_SCALE", float("inf"))
    monkeypatch.setattr(toxicity.fine_tuning, "_schedule", lambda step, steps: 1.0)
    classifier = build(tiny_encoder, tmp_path, Devices(CPU, FLOAT16))
    before = classifier.weights()[f"{HEAD}/bias"]

    def report(progress: Progress) -> None:
        scales[0].value.assign(float("inf") if progress.step < 3 else 1.0)

    fine_tune(classifier, COMMENTS[: PLAN.batch_size], replace(PLAN, epochs=4), report)
    moved = np.abs(classifier.weights()[f"{HEAD}/bias"] - before).max()
    assert moved == pytest.approx(PLAN.learning_rate * HEAD_RATE_FACTOR, rel=1e-3)  # as Adam's first step always is


def test_a_first_step_that_overflows_changes_no_weight(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity.fine_tuning, "LARGEST_SCALE", float("inf"))
    classifier = build(tiny_encoder, tmp_path, Devices(CPU, FLOAT16))
    before = classifier.weights()
    fine_tune(classifier, COMMENTS, TrainingPlan(epochs=1, learning_rate=1e-2))
    for name, value in classifier.weights().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


class TwoDevices:
    """What trainings over two logical devices left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())

    def weights(self, name: str) -> dict[str, FloatArray]:
        weights: dict[str, FloatArray] = load_file(self.folder / f"{name}.safetensors")
        return weights


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> TwoDevices:
    folder = tmp_path_factory.mktemp("two-devices")
    command = [sys.executable, "-m", "tests.two_devices", str(folder)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return TwoDevices(folder)


ON_TWO = ["two", "two-float16", "single-comment", "stopped", "steady-two", "steady-two-float16"]


@pytest.mark.parametrize("name", [name for name in ON_TWO if name != "stopped"])
def test_training_on_two_devices_lowers_the_loss(name: str, two_devices: TwoDevices) -> None:
    facts = two_devices.facts[name]
    assert (facts["replicas"], facts["precision"]) == (2, "mixed float16" if "float16" in name else "float32")
    assert np.mean(facts["losses"][-2:]) < 0.9 * np.mean(facts["losses"][:2])


@pytest.mark.parametrize("name", ON_TWO)
def test_two_devices_have_the_same_weights_after_training(name: str, two_devices: TwoDevices) -> None:
    first, second, kept = (two_devices.weights(each) for each in (f"{name}-0", f"{name}-1", name))
    assert first.keys() == second.keys() == kept.keys()
    for weight, value in kept.items():
        np.testing.assert_array_equal(first[weight], value, err_msg=weight)
        np.testing.assert_array_equal(second[weight], value, err_msg=weight)


@pytest.mark.parametrize("name", ["steady-two", "steady-two-float16"])
def test_two_devices_learn_what_one_does(name: str, two_devices: TwoDevices) -> None:
    one, two = two_devices.weights("steady-one"), two_devices.weights(name)
    for weight, value in one.items():
        np.testing.assert_allclose(two[weight], value, atol=1e-5, err_msg=weight)
    losses = [two_devices.facts[each]["losses"] for each in ("steady-one", name)]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)


def test_after_an_epoch_that_was_no_better_both_devices_have_the_best_weights(two_devices: TwoDevices) -> None:
    stopped, best = two_devices.weights("stopped"), two_devices.weights("stopped-best")
    for weight, value in best.items():
        np.testing.assert_array_equal(stopped[weight], value, err_msg=weight)
    assert two_devices.facts["stopped"]["epochs"] == 3


def test_what_two_devices_learned_is_published_and_answers_on_one(two_devices: TwoDevices, settings: Settings) -> None:
    settings = replace(settings, encoder=str(two_devices.folder / "encoder" / "saved"), max_length=MAX_LENGTH)
    single = build_classifier(settings.encoder, settings.data_dir, MAX_LENGTH)
    facts, weights = two_devices.facts["two"], two_devices.weights("two")
    assert single.fingerprint() == facts["fingerprint"]
    single.set_weights(weights)
    versions = ProjectVersions(settings.models_dir(), 7)
    manifest = replace(manifest_of(1, fingerprint=facts["fingerprint"]), golden_outputs=golden_outputs(single))
    versions.publish(manifest, weights, CARDS)
    loaded = load_version(settings, versions, 1)
    np.testing.assert_allclose(loaded.classifier.predict(TEXTS), facts["answers"], atol=5e-3)  # it may answer in bfloat16
