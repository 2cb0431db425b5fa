"""Records: malformed values, which names are used, and what is left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.formats.record import NO_OPTIONS, FormatOptions, format_options, parse_record, record_sample
from longvita.data.media.media_file import FilePart
from longvita.data.sample import Turn
from tests.unit.data.format_material import llava
from tests.unit.data.material import conversation

QUESTION, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}


def refused(record, options=NO_OPTIONS):
    with pytest.raises(SampleError) as caught:
        record_sample(record, options)
    return caught.value


@pytest.mark.parametrize(
    "line, reason",
    [
        (b"{", Reason.INVALID_JSON),
        (b"\xff\xfe{}", Reason.INVALID_JSON),
        (b"[" * 100_000, Reason.INVALID_JSON),
        (b"[1]", Reason.INVALID_SAMPLE),
        (b"{}", Reason.INVALID_SAMPLE),
        (b'{"messages": "hello"}', Reason.INVALID_SAMPLE),
        (b'{"messages": "[hello"}', Reason.INVALID_JSON),
        (b'{"messages": {"role": "user"}}', Reason.INVALID_SAMPLE),
        (b'{"messages": ["hello"]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "user", "content": 3}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "user", "content": ["a", "b"]}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "assistant", "content": "x", "loss": "yes"}]}', Reason.INVALID_SAMPLE),
        (b'{"messages": [{"role": "assistant", "content": "x", "loss": 1, "weight": 0}]}', Reason.INVALID_SAMPLE),
        (b'{"system": 3, "messages": [{"role": "assistant", "content": "x"}]}', Reason.INVALID_SAMPLE),
    ],
)
def test_malformed_records(line, reason):
    with pytest.raises(SampleError) as caught:
        parse_record(line, NO_OPTIONS)
    assert caught.value.reason == reason


@pytest.mark.parametrize("paths", [[3], [""], ["a\0b"], ["a\ud800.png"], {"a": 1}, 7, "a\0b"])
def test_bad_paths(paths):
    assert refused({"messages": [QUESTION, ANSWER], "images": paths}).reason == Reason.INVALID_SAMPLE


def test_no_detail_quotes_a_long_value():
    long = "x" * 10_000
    records = [
        {"messages": [{"role": long, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
        {"messages": [QUESTION, {**ANSWER, "weight": long}]},
        {"messages": [QUESTION, ANSWER], "images": [[long]]},
        {long: 1},
    ]
    assert max(len(refused(record).detail) for record in records) < 400


@pytest.mark.parametrize(
    "record, unused",
    [
        ({**conversation("x"), "id": 7, "tools": "[]", "history": [["a", "b"]]}, ("history", "tools")),
        ({**conversation("x"), "tools": None, "history": [], "source": "web"}, ("source",)),
        ({**llava("x"), "messages": [QUESTION, ANSWER]}, ("messages",)),
        ({**conversation("x"), "text": "more", "image": None}, ("text",)),
        ({"messages": [{**QUESTION, "name": "me"}, {**ANSWER, "tool_calls": [1], "loss": 1}]},
         ("turn.name", "turn.tool_calls")),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, QUESTION, ANSWER]}, ("system",)),
        ({"system": "a", "messages": [{"role": "system", "content": "a"}, QUESTION, ANSWER]}, ()),
        ({"question": "x", "answer": "y", "caption": "z"}, ("caption",)),
        ({"question": "x", "caption": "z", "image": "a.png"}, ("question",)),
        ({"json": {"question": "x", "answer": "y", "more": 1}, "width": 3}, ("more", "width")),
    ],
)  # fmt: skip
def test_what_is_not_used_is_named(record, unused):
    assert record_sample(record, NO_OPTIONS).unused == unused


def test_columns_that_the_config_names_come_first():
    record = {**conversation("x", "y"), "caption": "z", "image": "a.png", "meta": {"long": ["a", "b"]}}
    texts = []
    for columns in ({}, {"caption": "caption"}, {"caption": "meta.long.1"}, {"messages": "none", "caption": "caption"}):
        sample = record_sample(record, FormatOptions(tuple(columns.items()), "What?"))
        texts.append([turn.text for turn in sample.turns])
    assert texts == [["<image>\nx", "y"], ["<image>\nWhat?", "z"], ["<image>\nWhat?", "b"], ["<image>\nWhat?", "z"]]


@pytest.mark.parametrize(
    "columns, detail",
    [
        ({"caption": "long_captoin"}, "for caption, but there are only conversations, "),
        ({"caption": "long_captoin"}, "fix: columns: {caption: long_caption}"),
        ({"caption": "meta.lonk"}, "'meta' has only long, null; fix: columns: {caption: meta.long}"),
        ({"caption": "meta.long.7"}, "'meta.long' has only 2 elements; fix: name another one"),
        ({"caption": "meta.null"}, "name 'meta.null' for caption, which is empty; fix: name another one"),
        ({"messages": "meta.long.0.x"}, "'meta.long.0' has only a value without names"),
        ({"question": "none", "answer": "long_caption"}, "name 'none' for question"),
        ({"answer": "long_caption"}, "no messages, no question and answer, no caption among conversations, "),
    ],
)
def test_no_other_text_stands_in_for_that_of_the_columns(columns, detail):
    record = {**llava("x"), "caption": "short", "long_caption": "long", "image": "a.png"}
    record["meta"] = {"long": ["a", "b"], "null": None}
    error = refused(record, FormatOptions(tuple(columns.items())))
    assert (error.reason, detail in error.detail) == (Reason.INVALID_SAMPLE, True), error.detail


def test_options_of_a_command_line():
    options = format_options(["answer=label"], None, ["a=b=user"])
    assert (options.columns, options.roles) == ((("answer", "label"),), (("a=b", "user"),))
    with pytest.raises(DataError, match="--role 'robot=alien' is not WORD=ROLE with a ROLE of system, user, assistant"):
        format_options([], None, ["robot=alien"])
    with pytest.raises(DataError, match="--column 'label' is not WHAT=NAME"):
        format_options(["label"], None)


def test_a_file_address_is_a_path():
    assert record_sample({**llava("x"), "image": "file:///d/a.png"}, NO_OPTIONS).images == ("/d/a.png",)


def test_inline_pictures_in_their_order():
    text = "Picture 1: <img>a.png</img>\nPicture 2: <img>https://x.org/b</img>\n<image> <img>no picture</img>"
    sample = record_sample({**llava(text), "image": "c.png"}, NO_OPTIONS)
    assert sample.images == ("a.png", "https://x.org/b", "c.png")
    assert sample.turns[0].text == "Picture 1: <image>\nPicture 2: <image>\n<image> <img>no picture</img>"


def test_a_mark_of_another_kind_next_to_parts_is_text():
    parts = [{"type": "image"}, {"type": "text", "text": "is this a <video>?"}]
    sample = record_sample({"messages": [{"role": "user", "content": parts}, ANSWER], "images": ["a.png"]}, NO_OPTIONS)
    assert (sample.images, sample.videos, sample.marks) == (("a.png",), (), ("<image>",))


def test_parts_find_the_files_of_their_container_by_name():
    held = [FilePart("a.tar", 0, 9, "d/1.x.png"), FilePart("a.tar", 9, 9, "d/1.y.png")]
    parts = [{"type": "image", "image": "1.y.png"}, {"type": "image"}]
    record = {"messages": [{"role": "user", "content": parts}, ANSWER], "images": held}
    assert record_sample(record, NO_OPTIONS).images == (held[1], held[0])
    parts = [{"type": "image", "image": "1.y.png"}, {"type": "image", "image": "1.y.png"}]
    error = refused({"messages": [{"role": "user", "content": parts}, ANSWER], "images": held})
    assert (error.reason, "fix: name each of the images once" in error.detail) == (Reason.MARK_COUNT, True)


def test_turns_of_other_keys():
    detail = refused({"messages": [{"i": 1, "q": "x", "a": "y"}]}).detail
    assert "turn 0 has no role or from, but i, q, a; fix: write role and content, or user and assistant or" in detail
    columns = FormatOptions((("answer", "QA.0.a"), ("question", "QA.0.q")))
    assert record_sample({"QA": [{"i": 1, "q": "x", "a": "y"}]}, columns).turns[1].text == "y"


@pytest.mark.parametrize(
    "purpose, values, first",
    [
        ("answer", {"question": "x", "answers": ["a", "b"]}, "answers.0"),
        ("answer", {"question": "x", "answers": [{"answer": "a"}, {"answer": "b"}]}, "answers.0.KEY"),
        ("question", {"asked": ["x", "y"], "answer": "a"}, "asked.0"),
        ("caption", {"captions": ["a", "b"], "image": "a.png"}, "captions.0"),
    ],
)
def test_a_list_in_place_of_a_text_names_its_first_element(purpose, values, first):
    name = first.partition(".")[0]
    detail = refused(values, FormatOptions(((purpose, name),))).detail
    assert detail == f"2 texts for {purpose}; fix: name one of them, such as columns: {{{purpose}: {first}}}"
    column = first.replace("KEY", "answer")
    sample = record_sample(values, FormatOptions(((purpose, column),), "x"))
    assert "a" in sample.turns[1].text and "x" in sample.turns[0].text


def test_an_empty_user_turn_is_none():
    assert refused({"messages": [{"role": "user", "content": ""}, ANSWER]}).reason == Reason.EMPTY_TURN
    system = {"role": "system", "content": ""}
    assert record_sample({"messages": [system, QUESTION, ANSWER]}, NO_OPTIONS).turns[0] == Turn("system", "")


KEYS = ("role", "from", "content", "value", "loss", "weight", "type", "text", "image", "image_url", "video", "url",
        "path", "bytes", "user", "assistant", "question", "answer", "idx")  # fmt: skip
NAMES = ("messages", "conversations", "texts", "question", "answer", "caption", "captions", "system", "images", "image",
         "video", "json", "content_metadata", "tools")  # fmt: skip
WORDS = st.sampled_from(
    ["user", "gpt", "text", "image", "video", "a.png", "<image>", "<video>?", "<img>a.png</img>", "", "-1", "\ud800",
     "[1]", "data:image/png;base64,AAAA", "iVBORw0KGgo" + "A" * 41, "x" * 5000]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | WORDS | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=10,
)
TURNS = st.lists(st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": VALUES}), max_size=3)


@given(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5),
    st.none() | TURNS,
    st.sampled_from([(), (("caption", "captions.0"),), (("messages", "json.0.text"), ("images", "tools"))]),
)
def test_any_record_is_a_sample_or_refused(record, turns, columns):
    """With a message of a few hundred characters, whatever it holds; a mark for each of its media."""
    if turns is not None:
        record["conversations"] = turns
    refused = sample = None
    try:
        sample = record_sample(record, FormatOptions(columns))
    except SampleError as error:
        refused = error.detail
    if sample is None:
        assert refused and refused.isprintable() and len(refused) < 500
        return
    texts = "".join(turn.text for turn in sample.turns)
    assert not sample.images or texts.count("<image>") == len(sample.images)
    assert not sample.videos or texts.count("<video>") == len(sample.videos)
    texts.encode()
