import pytest

from longvita.evaluation.choice import chosen_option

OPTIONS = ("A. A red car", "B. A red car and a dog", "C. Nobody.", "D. In 1984")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        (" (B). ", "B"),
        ("**D**", "D"),
        ("B. A red car and a dog", "B"),
        ("C: nobody", "C"),
        ("The best answer is: D", "D"),
        ("Best option: C", "C"),
        ("The answer is (A).", "A"),
        ("I thought the answer is A, but the correct answer is C.", "C"),
        ("Answer: B\nThe dog is seen at the end.", "B"),
        ("nobody", "C"),
        ("There is a red car and a dog in it.", "B"),
        ("There is a red car.", "A"),
        ("It happened in 1984", "D"),
        ("A man opens door D", "D"),
        ("I am sure that it is B", "B"),
        ("A is correct", "A"),
        ("It is A because of the car", "A"),
        ("The answer is d.", "D"),
        ("B. Option A shows a dog", "B"),
        ("The answer is B. Option A is wrong", "B"),
        ("The answer is C, not option A", "C"),
        ("The answer is A red car", "A"),
        ("either B or C", None),
        ("A and B", None),
        ("A or B", None),
        ("A, B and D are correct", None),
        ("(A) and (B)", None),
        ("C) or D)", None),
        ("The answer is A or B", None),
        ("Option A or option B", None),
        ("It is not B", None),
        ("A man opens the door", None),
        ("E", None),
        ("I cannot tell.", None),
        ("", None),
        ("The answer isn't clear", None),
        ("what a day it was: option dog", None),
    ],
)
def test_the_option_that_an_answer_names(answer, letter):
    assert chosen_option(answer, OPTIONS) == letter


def test_words_inside_other_words_name_no_option():
    options = ["A. cart", "B. art", "C. man", "D. woman"]
    assert chosen_option("a man and a woman", options) is None
    assert chosen_option("a woman", options) == "D"
    assert chosen_option("cart", options) == "A"


def test_options_without_letters_and_more_than_four():
    assert chosen_option("the fifth", ["the first", "the second", "the third", "the fourth", "the fifth"]) == "E"
    assert chosen_option("E", ["1", "2", "3", "4", "5"]) == "E"
