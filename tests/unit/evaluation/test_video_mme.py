import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from longvita.data.tokenizer import load_tokenizer
from longvita.evaluation.data_set_files import DataSetError
from longvita.evaluation.video_mme import VideoMME, prompt_text, read_questions, score
from longvita.inference.limits import LengthError
from longvita.inference.prompt_encoder import PromptEncoder
from tests.tiny import tiny_config
from tools.quickstart.tokenizer import train_tokenizer

ROW = {
    "video_id": "001",
    "videoID": "abc",
    "question_id": "001-1",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Biology",
    "task_type": "Counting Problem",
    "question": "How many?",
    "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
    "answer": "B",
}


@pytest.fixture
def write(tmp_path):
    def rows(*changes):
        (tmp_path / "videomme").mkdir(exist_ok=True)
        table = pa.Table.from_pylist([{**ROW, **change} for change in changes])
        parquet.write_table(table, tmp_path / "videomme" / "test-00000-of-00001.parquet")
        return tmp_path

    return rows


def test_the_benchmarks_own_prompts(write):
    (question,) = read_questions(write({}))
    assert prompt_text(question, []) == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nHow many?\nA. One.\nB. Two.\nC. Three.\nD. Four.\n"
        "The best answer is:"
    )
    assert prompt_text(question, ["Hello.", "Bye."]).startswith(
        "This video's subtitles are listed below:\nHello.\nBye.\nSelect the best answer to the following "
        "multiple-choice question based on the video and the subtitles. Respond"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"answer": "E"}], "not the letter of one of them"),
        ([{"options": ["A. Yes"]}], "001-1 .* has the options .* there are 1, but a question has 2 to 10"),
        ([{"options": "A. One. B. Two."}], r"001-1 .* has the options 'A. One. B. Two.', which are no list of texts"),
        ([{"options": None}], "001-1 .* has the options None, which are no list"),
        ([{"options": [["A"], ["B"]]}], "001-1 .* which are no list of texts"),
        ([{"options": ["A. One.", None]}], "001-1 .* which are no list of texts"),
        ([{"options": ["B. One.", "A. Two."]}], "001-1 .* their letters are B, A, but must be in order"),
        ([{}, {}], "1 questions .* have the same question_id"),
    ],
)
def test_broken_tables(write, changes, message):
    with pytest.raises(DataSetError, match=message):
        read_questions(write(*changes))


def test_folders_that_lack_something(write, tmp_path):
    with pytest.raises(DataSetError, match="is not a folder"):
        read_questions(tmp_path / "nowhere")
    with pytest.raises(DataSetError, match=r"holds no \.parquet"):
        read_questions(tmp_path)
    folder = write({})
    with pytest.raises(DataSetError, match=r"holds none of the 1 videos, such as abc\.mp4"):
        VideoMME(folder)
    (folder / "abc.mp4").write_bytes(b"")
    assert [item.group for item in VideoMME(folder).items()] == ["abc"]
    with pytest.raises(DataSetError, match="ask without --subtitles"):
        VideoMME(folder, subtitles=True)
    table = parquet.read_table(folder / "videomme" / "test-00000-of-00001.parquet").drop_columns(["domain"])
    parquet.write_table(table, folder / "videomme" / "test-00000-of-00001.parquet")
    with pytest.raises(DataSetError, match="lacks the columns domain; it has"):
        read_questions(folder)
    (folder / "videomme" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataSetError, match="cannot be read as Parquet"):
        read_questions(folder)


def test_options_without_letters_get_them(write):
    (question,) = read_questions(write({"options": ["One", "Two", "Three"]}))
    assert question.options == ("A. One", "B. Two", "C. Three")
    assert "How many?\nA. One\nB. Two\nC. Three\nThe best answer is:" in prompt_text(question, [])


def test_linked_folders_are_followed(write, tmp_path):
    real = tmp_path / "real"
    (real / "videos").mkdir(parents=True)
    (real / "videos" / "abc.mp4").write_bytes(b"")
    folder = write({})
    (folder / "videomme").rename(real / "tables")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("videos", "tables"):
        (data / name).symlink_to(real / name, target_is_directory=True)
    (real / "videos" / "back").symlink_to(data, target_is_directory=True)
    (data / "tables_again").symlink_to(real / "tables", target_is_directory=True)
    task = VideoMME(data)
    assert task._videos.path("abc", "video") == data / "videos" / "abc.mp4"
    assert list(task.questions) == ["001-1"]


def test_a_corrected_question_is_another_item(write):
    folder = write({}, {"question_id": "001-2"})
    (folder / "abc.mp4").write_bytes(b"")
    before = {item.key: item.digest for item in VideoMME(folder).items()}
    for change in ({"answer": "C"}, {"question": "How many dogs?"}, {"options": ["A. One", "B. Two"]}):
        write(change, {"question_id": "001-2"})
        after = {item.key: item.digest for item in VideoMME(folder).items()}
        assert (after["001-1"] != before["001-1"], after["001-2"]) == (True, before["001-2"])


def test_scores_count_failures_as_wrong():
    column = {"domain": "x", "task_type": "t", "sub_category": "s"}
    records = [
        {**column, "duration": "short", "right": True, "chosen": "A"},
        {**column, "duration": "short", "right": False, "chosen": None},
        {**column, "duration": "long", "right": False, "chosen": "B"},
        {**column, "duration": "long", "error": "no such video"},
    ]
    scores = score(records)
    assert scores["overall"] == {"right": 1, "asked": 4, "accuracy": 0.25}
    assert scores["duration"] == {
        "short": {"right": 1, "asked": 2, "accuracy": 0.5},
        "long": {"right": 0, "asked": 2, "accuracy": 0.0},
    }
    assert (scores["failed"], scores["unclear"]) == (1, 1)


def test_a_video_is_shown_with_as_many_frames_as_fit_next_to_its_longest_question(write, tmp_path):
    """Frames of 3 tokens, one a second; a subtitle at each."""
    folder = write({}, {"question_id": "001-2", "question": "Why? " * 20})
    (folder / "abc").mkdir()
    for number in range(100):
        Image.new("RGB", (8, 8)).save(folder / "abc" / f"{number}.png")
    times = [f"00:{n // 60:02d}:{n % 60:02d}" for n in range(100)]
    (folder / "abc.srt").write_text("\n".join(f"{n}\n{t},000 --> {t},500\nw{n}\n" for n, t in enumerate(times)))
    (folder / "abc.mp4").write_bytes(b"")
    train_tokenizer([prompt_text(question, []) for question in read_questions(folder)], tmp_path / "t" / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "t" / "tokenizer"))
    model = {"language": {"vocab_size": 2 * tokenizer.vocab_size, "max_position_embeddings": 10_000}}
    for subtitles, limits in ((False, (300, 400, 10_000)), (True, (350, 450, 10_000))):
        task = VideoMME(folder, subtitles)
        for limit in limits:
            config = tiny_config(model=model, inference={"max_seq_len": limit, "max_num_frames": 90})
            encoder = PromptEncoder(config, tokenizer)
            frames, texts = task._shown("abc", folder / "abc", encoder)
            assert len(frames) == 90 if limit == 10_000 else 1 < len(frames) < 90
            assert len(texts) == (len(frames) if subtitles else 0)
            lengths = []
            for question in task.questions.values():
                messages = [{"role": "user", "content": "<video>\n" + prompt_text(question, texts)}]
                prompt = encoder.encode(messages, videos=[folder / "abc"], max_num_frames=len(frames))
                assert len(prompt.tile_starts) == len(frames)
                lengths.append(len(prompt))
            assert max(lengths) + 16 <= limit
            if limit < 10_000 and not subtitles:
                assert max(lengths) + 16 > limit - 20, "there was room for several more frames"
    short = PromptEncoder(tiny_config(model=model, inference={"max_seq_len": 90, "max_num_frames": 8}), tokenizer)
    with pytest.raises(LengthError, match="leaves no room for a frame of 3 tokens"):
        VideoMME(folder).check(short)
