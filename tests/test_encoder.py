"""The embedded encoder against the reference implementation, and other encoders in TensorFlow Hub's forms."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from safetensors.numpy import load_file

from tests.conftest import save_tiny_encoder
from tests.make_encoder_reference import FILE, SENTENCES
from toxicity.classifier import build_classifier
from toxicity.comments import LabelledComment
from toxicity.encoder import Encoder, embedded_saved_model, load_encoder
from toxicity.fine_tuning import TrainingPlan, fine_tune
from toxicity.settings import EMBEDDED
from toxicity.tokenizer import Tokenizer

pytestmark = pytest.mark.tensorflow

COMMENTS = ("Good bread", "bad", "")
OWN_SENTENCES = (
    "the bread is good and the cheese is better",
    "please do not shout at the baker",
    "thank you for the careful correction of this article",
    "two loaves cost 2,500 crowns in that year",
    "what a silly way to slice a loaf",
)


@pytest.fixture(scope="module")
def embedded(shared_data_dir: Path) -> Encoder:
    return load_encoder(EMBEDDED, shared_data_dir)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return dict(load_file(FILE))


def sequence_output(encoder: Encoder, reference: dict[str, Any]) -> Any:
    ids, mask = tf.constant(reference["input_word_ids"]), tf.constant(reference["input_mask"])
    return encoder.sequence_output(ids, mask, tf.zeros_like(ids)).numpy()


def test_sequence_output_is_the_reference_implementations_padding_included(embedded: Encoder, reference: dict[str, Any]) -> None:
    found = sequence_output(embedded, reference)
    assert found.shape == reference["sequence_output"].shape
    assert np.abs(found - reference["sequence_output"]).max() <= 1e-4


def test_sequence_output_of_a_comment_does_not_depend_on_its_padding(embedded: Encoder, reference: dict[str, Any]) -> None:
    padded = sequence_output(embedded, reference)
    for row, mask in enumerate(reference["input_mask"]):
        alone = {name: reference[name][row : row + 1, : mask.sum()] for name in ("input_word_ids", "input_mask")}
        np.testing.assert_allclose(sequence_output(embedded, alone)[0], padded[row, : mask.sum()], atol=1e-5)


def test_word_piece_ids_are_the_reference_implementations(embedded: Encoder, reference: dict[str, Any]) -> None:
    tokenizer = Tokenizer(embedded.vocabulary, 64)
    batch = tokenizer.pad([tokenizer.encode(sentence) for sentence in SENTENCES])
    np.testing.assert_array_equal(batch.input_word_ids, reference["input_word_ids"])
    np.testing.assert_array_equal(batch.input_mask, reference["input_mask"])


def test_the_handle_has_103_trainable_variables_and_its_tokenizers_assets(embedded: Encoder) -> None:
    assert len(embedded.layer.trainable_variables) == 103
    assert not embedded.takes_dictionary
    assert embedded.vocabulary.file.name == "vocab.txt"
    assert len(embedded.vocabulary.file.read_text(encoding="utf-8").splitlines()) == 30522
    assert embedded.vocabulary.lower_case
    assert not embedded.vocabulary.sentence_piece


def test_training_drops_out_and_prediction_does_not(embedded: Encoder, reference: dict[str, Any]) -> None:
    inputs = [tf.constant(reference[name]) for name in ("input_word_ids", "input_mask")]
    inputs.append(tf.zeros_like(inputs[0]))
    (_, first), (_, second) = (embedded.layer(inputs, training=True) for _ in range(2))
    assert np.abs(first.numpy() - second.numpy()).max() > 0.01
    np.testing.assert_array_equal(sequence_output(embedded, reference), sequence_output(embedded, reference))


def test_saved_model_is_built_once(shared_data_dir: Path) -> None:
    first = embedded_saved_model(shared_data_dir)
    built = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert embedded_saved_model(shared_data_dir) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == built


def test_two_that_build_at_the_same_time_both_get_one_whole_saved_model(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(embedded_saved_model, [tmp_path, tmp_path])
    assert first == second
    assert list((tmp_path / "encoders").iterdir()) == [first]
    assert len(load_encoder(EMBEDDED, tmp_path).layer.trainable_variables) == 103


def sentence_piece_model(control_symbols: Sequence[str] = ("[CLS]", "[SEP]", "[MASK]")) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(OWN_SENTENCES * 4),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=list(control_symbols),
        minloglevel=2,
    )
    return model.getvalue()


@pytest.mark.parametrize("form", ["older, uncased", "newer, cased", "ALBERT"])
def test_every_form_of_encoder_predicts_learns_and_gives_its_weights(form: str, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "older, uncased": {},
        "newer, cased": {"dictionary": True, "lower_case": False},
        "ALBERT": {"dictionary": True, "sentence_piece": sentence_piece_model()},
    }
    handle = str(save_tiny_encoder(tmp_path / "encoder", **options[form]))
    classifier = build_classifier(handle, tmp_path, 16)
    vocabulary = classifier.tokenizer.vocabulary
    assert vocabulary.sentence_piece == (form == "ALBERT")
    assert (classifier.tokenizer.encode("Bad") == classifier.tokenizer.encode("bad")) == (form != "newer, cased")
    before = classifier.predict(COMMENTS)
    assert before.shape == (3, 6)
    fine_tune(classifier, [LabelledComment("bad", (1.0,) * 6)], TrainingPlan(1, 1e-2))
    after = classifier.predict(COMMENTS)
    assert (after[1] > before[1]).all()
    other = build_classifier(handle, tmp_path, 16)
    other.set_weights(classifier.weights())
    np.testing.assert_array_equal(other.predict(COMMENTS), after)


def save_callable(folder: Path, function: Any, signature: list[Any], vocabulary: bool = True) -> str:
    module = tf.train.Checkpoint()
    module.variables, module.trainable_variables, module.regularization_losses = [], [], []
    module.do_lower_case = tf.Variable(True, trainable=False)
    if vocabulary:
        (folder.parent / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
        module.vocab_file = tf.saved_model.Asset(str(folder.parent / "vocab.txt"))
    if function is not None:
        module.__call__ = tf.function(function)
        module.__call__.get_concrete_function(*signature)
    tf.saved_model.save(module, str(folder))
    return str(folder)


def assert_refused(handle: str, data_dir: Path, *message: str) -> None:
    with pytest.raises(ValueError, match="The encoder") as caught:
        build_classifier(handle, data_dir, 16)
    for part in (handle, *message):
        assert part in str(caught.value)


@pytest.mark.parametrize("form", ["no folder", "no SavedModel", "no variables", "nothing to call"])
def test_a_handle_that_cannot_be_loaded_is_refused_with_what_encoder_takes(form: str, tmp_path: Path) -> None:
    handle = tmp_path / "nowhere"
    if form == "no SavedModel":
        handle.mkdir()
    elif form == "no variables":
        handle = save_tiny_encoder(tmp_path / "encoder")
        (handle / "variables" / "variables.index").unlink()
    elif form == "nothing to call":
        save_callable(handle, None, [])
    assert_refused(str(handle), tmp_path, "could not be loaded", "ENCODER takes 'embedded', a folder with a reusable")


def test_a_saved_model_without_vocabulary_is_refused(tmp_path: Path) -> None:
    handle = save_callable(tmp_path / "saved", lambda x: x, [tf.TensorSpec((None, None), tf.int32)], vocabulary=False)
    assert_refused(handle, tmp_path, "neither a vocab_file nor an sp_model_file")


@pytest.mark.parametrize("form", ["one tensor", "two tensors", "another dictionary", "nothing"])
def test_a_saved_model_with_another_signature_is_refused(form: str, tmp_path: Path) -> None:
    tensor = tf.TensorSpec((None, None), tf.int32, "text_ids")
    signatures: dict[str, tuple[Any, list[Any], str]] = {
        "one tensor": (lambda x: x, [tensor], "text_ids"),
        "two tensors": (lambda x: x[0], [[tensor, tensor]], "text_ids"),
        "another dictionary": (lambda x: x["text_ids"], [{"text_ids": tensor}], "text_ids"),
        "nothing": (lambda: tf.constant(1), [], "takes"),
    }
    function, signature, found = signatures[form]
    handle = save_callable(tmp_path / "saved", function, signature)
    assert_refused(handle, tmp_path, found, "expected a list of input_word_ids, input_mask")


def test_an_encoder_without_sequence_output_is_refused(tmp_path: Path) -> None:
    names = ("input_word_ids", "input_mask", "input_type_ids")
    signature = [{name: tf.TensorSpec((None, None), tf.int32, name) for name in names}]
    handle = save_callable(tmp_path / "saved", lambda x: {"pooled_output": tf.cast(x["input_mask"], tf.float32)}, signature)
    assert_refused(handle, tmp_path, "pooled_output", "sequence_output")


def test_a_maximum_length_beyond_the_encoders_positions_is_refused(shared_data_dir: Path) -> None:
    with pytest.raises(ValueError, match="512"):
        build_classifier(EMBEDDED, shared_data_dir, 513).predict(["word " * 600])
