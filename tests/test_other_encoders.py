"""Encoders in the very shapes that TensorFlow Hub's have, from the first prediction to the swap, and what is no encoder.

The networks are built and exported by Keras as TensorFlow's Model Garden exported the real ones: nested functional models
with its layers' names, `vocab_file` and `do_lower_case` (BERT) or `sp_model_file` alone (ALBERT) on the outermost one. They
lie in TensorFlow Hub's cache under the real ones' URLs, so that ENCODER names them as a user does and no network is asked.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis
import sentencepiece
import tensorflow as tf
import tf_keras

from backend.live_model import LiveModels
from tests.conftest import save_tiny_encoder
from toxicity.classifier import Classifier, build_classifier
from toxicity.examples import ExampleStore
from toxicity.label_studio import Annotation, Changes
from toxicity.loading import GOLDEN_COMMENTS, EncoderChangedError, load_version
from toxicity.settings import Settings
from toxicity.versions import LoadedVersion, ProjectVersions
from worker.training import learn_and_publish

pytestmark = pytest.mark.tensorflow

PROJECT = 7
RUDE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
COMMENTS = ("Bad bread!", "The bread is good.", "Хлеб и café, 面包。", "", "a loaf " * 12)
WIDTH, HEADS, LAYERS = 8, 2, 2

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNCASED = (*SPECIAL, ".", "!", ",", "the", "bread", "cafe", *LETTERS, *("##" + letter for letter in LETTERS))
MULTILINGUAL = (*UNCASED, "。", "The", "Bread", "café", "Café", "Хлеб", "хлеб", "и", "##ец", "面", "包")
ALBERT_SENTENCES = (
    "the bread is good and the cheese is better",
    "please do not shout at the baker (he is new)",
    "two loaves cost 2,500 crowns in that year",
    "what a silly way to slice a loaf - thank you for the careful correction",
)


@dataclass(frozen=True)
class Real:
    """What an encoder on TensorFlow Hub looks like. Without `vocabulary` it is an ALBERT, whose layers share their weights."""

    handle: str
    takes_dictionary: bool
    scope: str = ""  # before the names of its layers
    layer: str = "transformer/layer_{}"
    vocabulary: Sequence[str] = ()
    lower_case: bool = True


REAL = {
    "old BERT": Real(
        "https://tfhub.dev/tensorflow/bert_en_uncased_L-12_H-768_A-12/2", False, "bert_model/", "encoder/layer_{}", UNCASED
    ),
    "small BERT": Real("https://tfhub.dev/tensorflow/small_bert/bert_en_uncased_L-2_H-128_A-2/2", True, vocabulary=UNCASED),
    "multilingual BERT": Real(
        "https://tfhub.dev/tensorflow/bert_multi_cased_L-12_H-768_A-12/4", True, vocabulary=MULTILINGUAL, lower_case=False
    ),
    "ALBERT": Real("https://tfhub.dev/tensorflow/albert_en_base/1", False, "albert_model/", "encoder/shared_layer"),
}


def keras_encoder(real: Real, pieces: int) -> Any:
    """Post-norm transformer layers over three embeddings, as one Keras model from a dictionary to a dictionary."""
    layers, scope = tf_keras.layers, real.scope
    inputs = keras_inputs()
    word_ids, mask, type_ids = inputs.values()

    def norm(name: str) -> Any:
        return layers.LayerNormalization(epsilon=1e-12, name=scope + name)

    def dense(name: str, units: int, activation: str | None = None) -> Any:
        return layers.Dense(units, activation, name=scope + name)

    def transformer_layer(prefix: str) -> list[Any]:
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"{scope}{prefix}/self_attention")
        inner, output = dense(f"{prefix}/intermediate", 2 * WIDTH, "gelu"), dense(f"{prefix}/output", WIDTH)
        return [attention, norm(f"{prefix}/self_attention_layer_norm"), inner, output, norm(f"{prefix}/output_layer_norm")]

    positions = tf.cumsum(tf.ones_like(word_ids), axis=1, exclusive=True)
    tables = {"word_embeddings": (pieces, word_ids), "position_embedding": (64, positions), "type_embeddings": (2, type_ids)}
    embedded = [layers.Embedding(rows, WIDTH, "normal", name=scope + name)(ids) for name, (rows, ids) in tables.items()]
    x = layers.Dropout(0.1)(norm("embeddings/layer_norm")(layers.Add()(embedded)))
    names = dict.fromkeys(real.layer.format(number) for number in range(LAYERS))  # an ALBERT's have one name, and are one
    stack = [transformer_layer(name) for name in names]
    outputs = []
    for number in range(LAYERS):
        attention, attention_norm, inner, output, output_norm = stack[number % len(stack)]
        x = attention_norm(x + layers.Dropout(0.1)(attention(x, x, attention_mask=mask[:, tf.newaxis, :])))
        x = output_norm(x + layers.Dropout(0.1)(output(inner(x))))
        outputs.append(x)
    pooled = dense("pooler_transform", WIDTH, "tanh")(x[:, 0])
    return tf_keras.Model(inputs, {"sequence_output": x, "pooled_output": pooled, "encoder_outputs": outputs})


def keras_inputs() -> dict[str, Any]:
    names = ("input_word_ids", "input_mask", "input_type_ids")
    return {name: tf_keras.Input((None,), dtype=tf.int32, name=name) for name in names}


def export(real: Real, folder: Path, assets: Path) -> None:
    """Save an encoder as the Model Garden's export_tfhub.py did in 2019 (three inputs) and from 2020 on (a dictionary)."""
    tf_keras.utils.set_random_seed(1)
    file = assets / ("vocab.txt" if real.vocabulary else "30k-clean.model")
    if real.vocabulary:
        file.write_text("\n".join(real.vocabulary) + "\n", encoding="utf-8")
    else:
        file.write_bytes(sentence_piece_model())
    pieces = len(real.vocabulary) or sentencepiece.SentencePieceProcessor(model_file=str(file)).get_piece_size()
    inputs = keras_inputs()
    outputs = keras_encoder(real, pieces)(inputs)
    if real.takes_dictionary:
        model = tf_keras.Model(inputs, {**outputs, "default": outputs["pooled_output"]})
        head = tf_keras.layers.Dense(pieces, name="predictions/transform/logits")(outputs["sequence_output"])
        model._auto_track_sub_layers = False  # or its weights would be the encoder's
        model.mlm = tf_keras.Model(inputs, {**outputs, "mlm_logits": head})
    else:
        model = tf_keras.Model(list(inputs.values()), [outputs["pooled_output"], outputs["sequence_output"]])
    asset = tf.saved_model.Asset(str(file))
    if real.vocabulary:
        model.vocab_file, model.do_lower_case = asset, tf.Variable(real.lower_case, trainable=False)
    else:
        model.sp_model_file = asset
    model.save(folder, include_optimizer=False, save_format="tf")


def sentence_piece_model() -> bytes:
    """Train pieces with the options that ALBERT's 30k-clean.model was trained with."""
    model = io.BytesIO()
    options: dict[str, Any] = {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
    }
    options |= {"user_defined_symbols": ["(", ")", '"', "-", ".", "–", "£", "€"], "vocab_size": 90, "hard_vocab_limit": False}
    sentences = iter(ALBERT_SENTENCES * 4)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, minloglevel=2, **options)
    return model.getvalue()


def cached(cache: Path, handle: str) -> Path:
    """Where TensorFlow Hub keeps what it downloaded for a URL."""
    return cache / hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("hub")
    for name, real in REAL.items():
        export(real, cached(cache, real.handle), tmp_path_factory.mktemp(name.replace(" ", "-")))
    return cache


@pytest.fixture(autouse=True)
def use_hub_cache(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(hub_cache))


class Project:
    """A project whose encoder can be changed: its examples in Redis, its versions, and a training run over them."""

    def __init__(self, settings: Settings, connection: redis.Redis) -> None:
        self.settings = replace(settings, max_length=24, train_epochs=3, learning_rate=1e-2)
        self.store = ExampleStore(connection)
        self.versions = ProjectVersions(settings.models_dir(), PROJECT)

    def over(self, handle: str) -> Settings:
        return replace(self.settings, encoder=handle)

    def learn(self, handle: str, tasks: Sequence[int] = ()) -> int:
        """Have tasks annotated as rude, train, put what came of it into service, and return its number."""
        annotations = tuple(Annotation(task, task, "2026-01-01", f"Bad bread, {LETTERS[task]}!", RUDE) for task in tasks)
        self.store.apply(Changes(PROJECT, annotations=annotations))
        learn_and_publish(self.over(handle), self.store, PROJECT)
        number = self.versions.numbers()[-1]
        self.versions.make_current(number)
        return number


@pytest.fixture
def project(redis_settings: Settings, connection: redis.Redis) -> Project:
    return Project(redis_settings, connection)


def build(name: str, data_dir: Path) -> Classifier:
    return build_classifier(REAL[name].handle, data_dir, 24)


def answers(live: LoadedVersion) -> Any:
    return live.classifier.predict(COMMENTS)


@pytest.mark.parametrize("name", REAL)
def test_an_encoder_answers_whatever_the_padding_and_keeps_its_weights_by_the_real_ones_names(name: str, tmp_path: Path) -> None:
    real, classifier = REAL[name], build(name, tmp_path)
    together = classifier.predict(COMMENTS)
    assert together.shape == (len(COMMENTS), 6)
    assert ((together > 0) & (together < 1)).all()
    assert np.ptp(together, axis=0).min() > 1e-3
    np.testing.assert_allclose(np.concatenate([classifier.predict([comment]) for comment in COMMENTS]), together, atol=1e-6)
    prefix = f"encoder/{real.scope}"
    kernels = {prefix + real.layer.format(number) + "/self_attention/query/kernel" for number in range(LAYERS)}
    assert {weight for weight in classifier.weights() if weight.endswith("query/kernel")} == kernels
    assert {prefix + "word_embeddings/embeddings", prefix + "pooler_transform/bias"} < classifier.weights().keys()
    assert not any("predictions" in weight or "Variable" in weight for weight in classifier.weights())


@pytest.mark.parametrize("name", REAL)
def test_an_encoder_learns_and_what_it_publishes_is_loaded_and_swapped_in(name: str, project: Project) -> None:
    handle = REAL[name].handle
    live_models = LiveModels(project.over(handle))
    before = live_models.of(PROJECT)
    assert (before.number, project.learn(handle, range(16))) == (0, 1)
    loaded = load_version(project.over(handle), project.versions, 1)
    published = project.versions.manifest(1).golden_outputs
    np.testing.assert_allclose(loaded.classifier.predict(GOLDEN_COMMENTS), published, atol=1e-6)
    live_models.swap_where_behind()
    assert live_models.of(PROJECT).number == 1
    np.testing.assert_array_equal(answers(live_models.of(PROJECT)), answers(loaded))
    assert np.abs(answers(loaded)[0] - RUDE).mean() < np.abs(answers(before)[0] - RUDE).mean()
    start, learned = (cast(Classifier, version.classifier).weights() for version in (before, loaded))
    still = {weight for weight in start if np.array_equal(start[weight], learned[weight])}
    assert all("pooler_transform" in weight for weight in still)  # nothing asks for the pooled output


CUT = {
    "old BERT": {"The Café, the BREADS!": "the cafe , the bread ##s !"},
    "small BERT": {"The Café, the BREADS!": "the cafe , the bread ##s !"},
    "multilingual BERT": {
        "The Bread, the bread!": "The Bread , the bread !",
        "Café café cafés cafe CAFÉ": "Café café café ##s cafe [UNK]",
        "Хлеб и хлебец ХЛЕБ": "Хлеб и хлеб ##ец [UNK]",
        "面包。хлеб面": "面 包 。 хлеб 面",
    },
}


@pytest.mark.parametrize("name", CUT)
def test_words_are_cut_with_the_assets_own_pieces_and_case_rule(name: str, tmp_path: Path) -> None:
    tokenizer = build(name, tmp_path).tokenizer
    for comment, pieces in CUT[name].items():
        ids = [REAL[name].vocabulary.index(piece) for piece in ("[CLS]", *pieces.split(), "[SEP]")]
        assert tokenizer.encode(comment) == ids


def test_alberts_ids_are_sentence_pieces_own_lower_case_and_without_accents(tmp_path: Path) -> None:
    tokenizer = build("ALBERT", tmp_path).tokenizer
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.vocabulary.file))
    assert [pieces.id_to_piece(number) for number in range(5)] == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    for comment, plain in (
        ("The BREAD  (is) bétter – £2!", "the bread (is) better – £2!"),
        ("[CLS] Хлеб 面包", "[cls] хлеб 面包"),
        ("", ""),
    ):
        assert tokenizer.encode(comment) == [2, *pieces.encode(plain), 3]
    assert tokenizer.pad([[2, 3], [2, 9, 3]]).input_word_ids[0, 2] == 0


def assert_refused(handle: str, data_dir: Path, *message: str) -> None:
    with pytest.raises(ValueError, match=r"encoder|ENCODER") as caught:
        build_classifier(handle, data_dir, 16)
    for part in (repr(handle), *message):
        assert part in str(caught.value)


def test_a_url_that_cannot_be_reached_is_refused(tmp_path: Path) -> None:
    assert_refused("https://127.0.0.1:9/tensorflow/bert/1", tmp_path, "Connection refused", "a TensorFlow Hub URL")


def test_an_encoder_in_the_form_of_tensorflow_1_is_refused_with_what_it_offers(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        ids = tf.compat.v1.placeholder(tf.int32, (None, None), "input_ids")
        signature = tf.compat.v1.saved_model.predict_signature_def({"input_ids": ids}, {"pooled_output": tf.identity(ids)})
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "bert_uncased"))
        builder.add_meta_graph_and_variables(session, [], {"tokens": signature})
        builder.save()
    (tmp_path / "bert_uncased" / "tfhub_module.pb").write_bytes(b"\x08\x03")
    assert_refused(str(tmp_path / "bert_uncased"), tmp_path, "tokens", "a reusable TensorFlow SavedModel")


def test_a_vocabulary_without_cls_is_refused_with_the_url_that_it_came_from(hub_cache: Path, tmp_path: Path) -> None:
    handle = "https://tfhub.dev/tensorflow/bert_without_cls/1"
    save_tiny_encoder(tmp_path / "bert", vocabulary=("[PAD]", "[UNK]", "[SEP]", "a")).rename(cached(hub_cache, handle))
    assert_refused(handle, tmp_path, "has 4 entries but not [CLS]", "use the vocab_file")


@pytest.mark.parametrize("piece_model", [None, b"no pieces"])
def test_a_vocabulary_that_is_missing_or_damaged_is_refused(piece_model: bytes | None, tmp_path: Path) -> None:
    handle = save_tiny_encoder(tmp_path / "bert", sentence_piece=piece_model)
    if piece_model is None:
        (handle / "assets" / "vocab.txt").unlink()
    assert_refused(str(handle), tmp_path, "30k-clean.model" if piece_model else "vocab.txt")


def test_another_encoder_begins_a_line_of_its_own_and_the_old_one_serves_again_when_set_back(
    project: Project, tiny_encoder: Path
) -> None:
    old, new = str(tiny_encoder), REAL["ALBERT"].handle
    assert [project.learn(old, tasks) for tasks in (range(8), range(8, 16))] == [1, 2]
    with pytest.raises(EncoderChangedError, match=re.escape(f"ENCODER={new}")):
        load_version(project.over(new), project.versions, 2)
    on_old, on_new = LiveModels(project.over(old)), LiveModels(project.over(new))
    before = answers(on_old.of(PROJECT))
    assert (on_old.of(PROJECT).number, on_new.of(PROJECT).number) == (2, 0)
    assert np.isfinite(answers(on_new.of(PROJECT))).all()

    assert project.learn(new) == 3
    second, third = (project.versions.manifest(number) for number in (2, 3))
    assert (third.parent, third.watermark, second.parent) == (0, second.watermark, 1)
    assert third.training["new_examples"] > second.training["new_examples"]  # those of both old versions, from the beginning
    set_back = LiveModels(project.over(old))
    for live_models, number in ((on_old, 2), (on_new, 3), (set_back, 2)):
        live_models.swap_where_behind()
        assert live_models.of(PROJECT).number == number
    np.testing.assert_array_equal(answers(set_back.of(PROJECT)), before)
