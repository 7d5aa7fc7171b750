"""Label Studio's JSON, as the contract measured it, to our types and back."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toxicity.label_studio import Annotation, Changes, comment_text, prediction, project_id, read_annotation, read_event
from toxicity.labelling_config import DEFAULT_CONFIG, LabellingConfig, LabelStudioError, read_config
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS

Json = dict[str, Any]

CONFIG = read_config(DEFAULT_CONFIG)
UPDATED = "2026-01-05T10:30:00.123456Z"
CLEAN = (0.0,) * 6


def labelling_config(choices: str, text: str = '<Text name="text" value="$text"/>') -> str:
    return f'<View>{text}<Choices name="toxicity" toName="text" choice="multiple">{choices}</Choices></View>'


def region(*choices: str, from_name: str = "toxicity") -> Json:
    value = {"choices": list(choices)}
    return {"id": "Zq3", "from_name": from_name, "to_name": "text", "type": "choices", "origin": "manual", "value": value}


def annotation(annotation_id: int = 11, task: object = 5, **fields: Any) -> Json:
    return {
        "id": annotation_id,
        "result": [region("toxic", "insult")],
        "was_cancelled": False,
        "ground_truth": False,
        "completed_by": 1,
        "created_at": "2026-01-05T10:29:00.000000Z",
        "updated_at": UPDATED,
        "lead_time": 4.2,
        "unique_id": "6f9b",
        "task": task,
        "project": 1,
    } | fields


def task(task_id: int = 5, text: object = "What a silly thing to write.") -> Json:
    return {"id": task_id, "data": {"text": text}, "project": 1, "is_labeled": True}


def event(**fields: Any) -> Json:
    project = {"id": 1, "title": "Comments", "label_config": DEFAULT_CONFIG, "parsed_label_config": {}}
    return {"annotation": annotation(), "task": task(), "project": project} | fields


def only_annotation(**fields: Any) -> Annotation:
    (read,) = read_event("ANNOTATION_CREATED", event(annotation=annotation(**fields))).annotations
    return read


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1), ("1", 1), ("1.1795389861", 1), ("207.1795389861", 207), (0, 0), (3.0, 3), (None, None), ("", None)],
)
def test_a_project_is_read_in_every_form_that_label_studio_sends(value: object, number: int | None) -> None:
    assert project_id(value) == number


@pytest.mark.parametrize("value", ["one", "-1", -1, ".5", " 1", "²", "١", True, [1], {"id": 1}, float("nan"), 10**18, "1" * 5000])
def test_a_project_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(LabelStudioError, match="expected its number"):
        project_id(value)


def test_the_default_config_offers_the_six_labels_under_their_own_names() -> None:
    names = frozenset({"text", "toxicity"})
    assert LabellingConfig("toxicity", "text", "text", {label: label for label in LABELS}, frozenset(LABELS), names) == CONFIG


def test_a_config_may_use_any_names_and_its_labels_come_in_our_order() -> None:
    config = read_config(
        '<View><Header value="Judge"/><View className="row"><Text name="post" value="$body"/></View>'
        '<Choices name="kind" toName="post" choice="multiple"><View><Choice value="Identity-Hate"/></View>'
        '<Choice value="Profanity"/><Choice value="Spam"/></Choices></View>'
    )
    assert (config.from_name, config.to_name, config.text_key) == ("kind", "post", "body")
    assert list(config.choices.items()) == [("obscene", "Profanity"), ("identity_hate", "Identity-Hate")]


def test_a_choices_alias_is_what_a_region_carries() -> None:
    config = read_config(labelling_config('<Choice value="Rude words" alias="obscene"/><Choice value="Threat" alias="t1"/>'))
    assert config.choices == {"obscene": "obscene", "threat": "t1"}


def test_of_several_choices_tags_the_one_that_offers_most_of_the_six_counts() -> None:
    config = read_config(
        '<View><Text name="text"/><Choices name="few" toName="text" choice="multiple"><Choice value="toxic"/></Choices>'
        '<Choices name="single" toName="text"><Choice value="toxic"/><Choice value="threat"/><Choice value="insult"/></Choices>'
        '<Choices name="more" toName="text" choice="multiple"><Choice value="toxic"/><Choice value="threat"/></Choices></View>'
    )
    assert config.from_name == "more"
    assert config.tag_names == {"text", "few", "single", "more"}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DEFAULT_CONFIG.replace('choice="multiple"', ""), 'takes one choice.*set choice="multiple"'),
        (DEFAULT_CONFIG.replace('toName="text"', 'toName="other"'), "toName='other', which is no Text tag"),
        (DEFAULT_CONFIG.replace('name="toxicity"', ""), "which is no Text tag"),
        (labelling_config('<Choice value="spam"/>'), "offers none of toxic, severe_toxic"),
        (labelling_config('<Choice value="toxic"/>', text='<Image name="text" value="$text"/>'), "no <Text"),
        ('<View><Text name="text" value="$text"/></View>', "it has no Choices tag"),
        ("<View><Text", "not XML that can be read"),
        ("", "not XML that can be read"),
        ("\ud800", "not XML that can be read"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_its_reason(config: str, reason: str) -> None:
    with pytest.raises(LabelStudioError, match=reason):
        read_config(config)


@pytest.mark.parametrize("entity", ['<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">', '<!ENTITY b SYSTEM "file:///etc/hostname">'])
def test_xml_entities_are_refused_before_they_are_expanded(entity: str) -> None:
    config = f"<?xml version='1.0'?><!DOCTYPE View [{entity}]>" + labelling_config('<Choice value="toxic"/>&b;')
    with pytest.raises(LabelStudioError, match="EntitiesForbidden"):
        read_config(config)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        (0, "0"),
        (2.5, "2.5"),
        (["a", 1], "['a', 1]"),
        ("x" * 100_000, "x" * 100_000),
        ("👩‍👩‍👧 fine 👍🏽", "👩‍👩‍👧 fine 👍🏽"),
        ("שלום \u202eabc", "שלום \u202eabc"),
        ("half \ud83d of an emoji", "half \ud83d of an emoji"),
        ("  kept\r\nas it is\x00 ", "  kept\r\nas it is\x00 "),
    ],
)
def test_a_comment_is_text_whatever_its_task_holds(value: object, text: str) -> None:
    assert comment_text(task(text=value), CONFIG) == text


@pytest.mark.parametrize(
    "odd", [None, [], "task", 3, {}, {"data": None}, {"data": "text"}, {"data": []}, {"data": {"other": "x"}}]
)
def test_a_task_without_its_comment_has_an_empty_one(odd: object) -> None:
    assert comment_text(odd, CONFIG) == ""


def test_a_task_from_a_file_without_columns_holds_its_comment_under_undefined() -> None:
    assert comment_text({"data": {"$undefined$": "Well said."}}, CONFIG) == "Well said."
    assert comment_text({"data": {"$undefined$": "old", "text": "new"}}, CONFIG) == "new"


def test_a_prediction_is_one_region_of_all_ticked_choices_with_score_and_version() -> None:
    assert prediction((0.9, 0.1, 0.2, 0.0, 0.75, 0.4999999), DEFAULT_THRESHOLDS, "v3", CONFIG) == {
        "result": [{"from_name": "toxicity", "to_name": "text", "type": "choices", "value": {"choices": ["toxic", "insult"]}}],
        "score": 0.0,
        "model_version": "v3",
        "probabilities": dict(zip(LABELS, (0.9, 0.1, 0.2, 0.0, 0.75, 0.5), strict=True)),
    }


def test_a_clean_comment_is_an_empty_result_with_its_score() -> None:
    answer = prediction((0.1, 0.0, 0.0, 0.0, 0.0, 0.0), DEFAULT_THRESHOLDS, "v0", CONFIG)
    assert (answer["result"], answer["score"]) == ([], 0.8)


def test_the_configs_own_words_are_written_and_labels_not_offered_count_for_nothing() -> None:
    config = read_config(labelling_config('<Choice value="Insulting" alias="i7"/><Choice value="Toxicity"/>'))
    answer = prediction((0.9, 0.5, 0.5, 0.5, 0.8, 0.99), DEFAULT_THRESHOLDS, "v1", config)
    assert answer["result"][0]["value"] == {"choices": ["Toxicity", "i7"]}
    assert answer["probabilities"] == {"toxic": 0.9, "insult": 0.8}
    assert answer["score"] == 0.6


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_UPDATED"])
def test_a_created_or_updated_annotation_is_read_with_its_comment(action: str) -> None:
    expected = Annotation(11, 5, UPDATED, "What a silly thing to write.", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    assert read_event(action, event()) == Changes(1, annotations=(expected,))


def test_an_empty_result_is_a_clean_comment_with_six_negative_targets() -> None:
    assert only_annotation(result=[]).targets == CLEAN


@pytest.mark.parametrize("result", [[], [region("toxic")]])
def test_skip_decides_nothing_whatever_was_ticked(result: list[Json]) -> None:
    assert only_annotation(result=result, was_cancelled=True).targets is None


def test_labels_that_the_config_does_not_offer_have_no_target() -> None:
    project = {"id": 1, "label_config": labelling_config('<Choice value="Toxicity"/><Choice value="Very bad" alias="insult"/>')}
    payload = event(project=project, annotation=annotation(result=[region("Toxicity")]))
    assert read_event("ANNOTATION_CREATED", payload).annotations[0].targets == (1.0, None, None, None, 0.0, None)


@pytest.mark.parametrize("written", ["t1", "Threat"])
def test_a_choice_is_understood_by_its_alias_and_by_its_value(written: str) -> None:
    project = {"id": 1, "label_config": labelling_config('<Choice value="Threat" alias="t1"/><Choice value="toxic"/>')}
    payload = event(project=project, annotation=annotation(result=[region(written)]))
    assert read_event("ANNOTATION_CREATED", payload).annotations[0].targets == (0.0, None, None, 1.0, None, None)


def test_nested_choices_count_by_the_end_of_their_path() -> None:
    nested = region() | {"value": {"choices": [["Abuse", "Insult"], ["Threat"]]}}
    assert only_annotation(result=[nested]).targets == (0.0, 0.0, 0.0, 1.0, 1.0, 0.0)


def test_an_annotation_under_another_config_is_left_out_and_not_called_clean() -> None:
    foreign = annotation(result=[region("toxic", from_name="sentiment")])
    assert read_annotation(foreign, task(), CONFIG) is None
    assert read_event("ANNOTATION_CREATED", event(annotation=foreign)) == Changes(1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, UPDATED), ({"updated_at": None}, "2026-01-05T10:29:00.000000Z"), ({"updated_at": None, "created_at": None}, "")],
)
def test_the_time_of_a_revision_is_updated_at_or_else_created_at(fields: Json, expected: str) -> None:
    assert only_annotation(**fields).updated_at == expected


def test_a_batch_is_matched_by_task_id_and_not_by_order() -> None:
    payload = event(
        annotation=[annotation(21, 8, result=[]), annotation(22, 7), annotation(23, 8, was_cancelled=True)],
        task=[task(7, "seven"), task(8, "eight")],
    )
    read = read_event("ANNOTATIONS_CREATED", payload).annotations
    insulting = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert [(each.annotation_id, each.task_id, each.text, each.targets) for each in read] == [
        (21, 8, "eight", CLEAN),
        (22, 7, "seven", insulting),
        (23, 8, "eight", None),
    ]


@pytest.mark.parametrize(
    ("action", "payload", "changes"),
    [
        ("ANNOTATIONS_DELETED", {"annotations": [{"id": 3}, {"id": 4}], "project": {"id": 1}}, Changes(1, (), (3, 4))),
        ("ANNOTATION_DELETED", {"annotation": {"id": 3}, "project": {"id": 1}}, Changes(1, (), (3,))),
        ("TASKS_DELETED", {"tasks": [{"id": 5}, {"id": 6}]}, Changes(None, deleted_tasks=(5, 6))),
        ("TASKS_DELETED", {"tasks": [{"id": 5}], "project": {"id": 2}}, Changes(2, deleted_tasks=(5,))),
        ("TASK_DELETED", {"task": {"id": 5}}, Changes(None, deleted_tasks=(5,))),
        ("START_TRAINING", {"project": {"id": 4, "title": "Comments"}}, Changes(4, start_training=True)),
        ("PROJECT_DELETED", {"project": {"id": 4}}, Changes(4, project_deleted=True)),
        ("PROJECT_UPDATED", {"project": {"id": 4, "label_config": "<View/>"}}, Changes(4)),
        ("TASKS_CREATED", {"tasks": [{"id": 5}], "project": {"id": 4}}, Changes(4)),
        ("LABEL_LINK_CREATED", {}, Changes(None)),
        (None, {"project": 4}, Changes(4)),
    ],
)
def test_every_other_action_means_what_the_contract_says(action: object, payload: Json, changes: Changes) -> None:
    assert read_event(action, payload) == changes


@pytest.mark.parametrize(
    "payload",
    [
        {},
        event(project={"title": "no id"}),
        event(project={"id": [1]}),
        event(project={"id": 1, "label_config": "<View/>"}),
        event(project={"id": 1, "label_config": 5}),
        event(project={"id": 1, "label_config": ["<View/>"]}),
        event(task=None),
        event(task=task(6)),
        event(annotation=None),
        event(annotation="11"),
    ],
)
def test_an_event_without_project_config_annotation_or_its_task_is_refused(payload: Json) -> None:
    with pytest.raises(LabelStudioError):
        read_event("ANNOTATION_CREATED", payload)


@pytest.mark.parametrize("field", ["id", "task", "result"])
@pytest.mark.parametrize("value", ["toxic", True, -1, [5], {"choices": ["toxic"]}])
def test_an_annotation_with_an_odd_id_task_or_result_is_refused(field: str, value: object) -> None:
    with pytest.raises(LabelStudioError):
        read_event("ANNOTATION_CREATED", event(annotation=annotation() | {field: value}))


@pytest.mark.parametrize("odd", [{"from_name": ["toxicity"]}, {"value": {"choices": 5}}])
def test_a_region_with_an_odd_name_or_choices_is_refused_or_left_out_and_not_called_clean(odd: Json) -> None:
    with contextlib.suppress(LabelStudioError):
        assert read_event("ANNOTATION_CREATED", event(annotation=annotation(result=[region() | odd]))).annotations == ()


@pytest.mark.parametrize("payload", [{}, {"annotations": [3]}, {"annotations": [{"id": "3"}]}, {"annotations": {"id": None}}])
def test_a_deletion_without_whole_numbers_as_ids_is_refused(payload: Json) -> None:
    with pytest.raises(LabelStudioError):
        read_event("ANNOTATIONS_DELETED", payload | {"project": {"id": 1}})


ACTIONS = ["ANNOTATION_CREATED", "ANNOTATIONS_UPDATED", "ANNOTATIONS_DELETED", "TASKS_DELETED", "START_TRAINING", "SOMETHING_NEW"]
FIELDS = st.sampled_from(
    ["id", "task", "result", "from_name", "value", "choices", "data", "text", "label_config", "was_cancelled"]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([1, 5, "toxicity", "toxic"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.sampled_from(ACTIONS), st.dictionaries(st.sampled_from(["project", "annotation", "task", "tasks"]), JSON_VALUES))
def test_random_json_gives_changes_or_a_label_studio_error(action: str, payload: Json) -> None:
    with contextlib.suppress(LabelStudioError):
        assert isinstance(read_event(action, payload), Changes)


@settings(deadline=None)
@given(
    st.sampled_from(["project", "annotation", "task"]),
    st.dictionaries(FIELDS, JSON_VALUES, min_size=1, max_size=2),
    st.dictionaries(FIELDS, JSON_VALUES, max_size=2),
)
def test_an_event_with_a_few_odd_fields_gives_changes_or_a_label_studio_error(part: str, odd: Json, odd_region: Json) -> None:
    payload = event(annotation=annotation(result=[region("toxic") | odd_region]))
    payload[part] |= odd
    with contextlib.suppress(LabelStudioError):
        assert isinstance(read_event("ANNOTATION_CREATED", payload), Changes)


def test_one_odd_annotation_in_a_bulk_event_does_not_cost_the_others() -> None:
    tasks = [{"id": task, "data": {"text": f"comment {task}"}} for task in (1, 2, 3)]
    annotations = [{"id": task, "task": task, "result": [] if task != 2 else "odd"} for task in (1, 2, 3)]
    changes = read_event("ANNOTATIONS_CREATED", {"annotation": annotations, "task": tasks, "project": {"id": 1}})
    assert [annotation.annotation_id for annotation in changes.annotations] == [1, 3]
    assert changes.unreadable == 1
