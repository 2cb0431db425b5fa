from longvita.evaluation.subtitles import Subtitle, read_srt, texts_at

SRT = """\ufeff1\r
00:00:01,000 --> 00:00:02,500\r
<font color="white">Hello,</font>\r
{\\an8}you there\r
\r
3
00:01:00.5 --> 00:01:02,000
Hello again

2
00:00:02,500 --> 00:00:04,000
<i>Hello, you there</i>

4
01:00:00,000 --> 01:00:01,000

"""


def test_a_file_is_read_in_order_of_time_without_its_markup(tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes(SRT.encode())
    assert read_srt(path) == [
        Subtitle(1.0, 2.5, "Hello, you there"),
        Subtitle(2.5, 4.0, "Hello, you there"),
        Subtitle(60.5, 62.0, "Hello again"),
    ]


def test_another_kind_of_file_has_no_subtitles(tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes(b"\xff\xfe no times here\n\n00:00 --> nowhere\n")
    assert read_srt(path) == []


def test_the_subtitles_at_frames():
    subtitles = [Subtitle(0, 1, "a"), Subtitle(1.5, 2.5, "b"), Subtitle(2.5, 3, "b"), Subtitle(8, 9, "c")]
    assert texts_at(subtitles, [0.0, 1.0, 2.0, 2.75]) == ["a", "b"]
    assert texts_at(subtitles, [1.25, 8.5]) == ["c"]
    assert texts_at(subtitles, []) == []
