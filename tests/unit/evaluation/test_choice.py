import time

import pytest

from longvita.evaluation.choice import chosen_option
from longvita.evaluation.option_text import with_letters
from tests.unit.evaluation.wordings import FOUR, WORDINGS

OPTIONS = ("A. A red car", "B. A red car and a dog", "C. Nobody.", "D. In 1984")


@pytest.mark.parametrize(("options", "letter", "answer"), WORDINGS)
def test_an_answer_is_read_as_a_person_reads_it(options, letter, answer):
    assert chosen_option(answer, options) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C: nobody", "C"),
        ("nobody", "C"),
        ("There is a red car and a dog in it.", "B"),
        ("There is a red car.", "A"),
        ("It happened in 1984", "D"),
        ("Answer: B\nThe dog is seen at the end.", "B"),
        ("It is A because of the car", "A"),
    ],
)
def test_words_of_options_that_are_parts_of_others(answer, letter):
    assert chosen_option(answer, OPTIONS) == letter


def test_words_inside_other_words_name_no_option():
    options = ["A. cart", "B. art", "C. man", "D. woman"]
    assert chosen_option("a man and a woman", options) is None
    assert chosen_option("a woman", options) == "D"
    assert chosen_option("cart", options) == "A"


def test_options_without_letters_and_more_than_four():
    assert chosen_option("the fifth", ["the first", "the second", "the third", "the fourth", "the fifth"]) == "E"
    assert chosen_option("E", ["1", "2", "3", "4", "5"]) == "E"


@pytest.mark.parametrize("piece", ["A, ", "the answer is ", "not A or ", "(", "'A' ", "option ", "$\\boxed{", "a\n"])
def test_a_long_answer_is_read_in_linear_time(piece):
    start = time.perf_counter()
    chosen_option(piece * 2000, FOUR)
    assert time.perf_counter() - start < 2


def test_options_get_letters_where_they_have_none():
    assert with_letters(["a dog", "A man"]) == ("A. a dog", "B. A man")
    assert with_letters(["A. a dog", "(B) a man", "C) none"]) == ("A. a dog", "(B) a man", "C) none")
    assert with_letters(["A. a dog", "a man"]) == ("A. a dog", "B. a man")
    for options, message in ((["B. a dog", "A. a man"], "in order"), (["a"], "there are 1"), (["x"] * 11, "are 11")):
        with pytest.raises(ValueError, match=message):
            with_letters(options)
