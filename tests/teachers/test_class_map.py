from __future__ import annotations

import pytest
import torch

from calkd_det.errors import ConfigError
from calkd_det.teachers.class_map import check_class_names, match_classes

TEACHER = ('cat', 'dog', 'bird', 'cow')


def test_same_classes_need_no_map() -> None:
    assert match_classes(TEACHER, list(TEACHER), 4, 4) is None


def test_another_order_is_an_exact_permutation() -> None:
    class_map = match_classes(('cow', 'cat', 'bird', 'dog'), TEACHER, 4, 4)
    logits = torch.randn(7, 5)
    assert torch.equal(class_map(logits), logits[:, [3, 0, 2, 1, 4]])


def test_classes_of_the_teacher_alone_join_the_background() -> None:
    class_map = match_classes(('bird', 'cat'), TEACHER, 2, 4)
    logits = torch.randn(7, 5, dtype=torch.float64) * 5
    p = logits.softmax(dim=1)
    expected = torch.stack([p[:, 2], p[:, 0], p[:, 1] + p[:, 3] + p[:, 4]], dim=1)
    assert torch.allclose(class_map(logits).softmax(dim=1), expected)


def test_unknown_names_and_equal_numbers_are_taken_as_they_are() -> None:
    assert match_classes(None, TEACHER, 4, 4) is None
    assert match_classes(TEACHER, None, 4, 4) is None


@pytest.mark.parametrize(
    ('student', 'teacher', 'numbers', 'message'),
    [
        (('cat', 'horse'), TEACHER, (2, 4), "does not know 1 of the student's classes: horse"),
        (('a', 'b'), TEACHER, (2, 4), "does not know 2 of the student's classes: a, b"),
        (('cat', 'dog'), TEACHER, (80, 4), 'student has 80 classes .* names 2'),
        (('cat', 'dog'), TEACHER, (2, 80), 'teacher has 80 classes .* names 4'),
        (('cat', 'cat'), TEACHER, (2, 4), 'two classes of one name'),
        (None, TEACHER, (3, 4), 'names of the student are unknown'),
        (('cat', 'dog'), None, (2, 4), 'names of the teacher are unknown'),
    ],
)
def test_what_cannot_be_matched(student, teacher, numbers, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        match_classes(student, teacher, *numbers)


def test_the_teachers_name_of_a_students_class() -> None:
    class_map = match_classes(('hound', 'cat'), TEACHER, 2, 4, class_names={'hound': 'dog'})
    assert class_map.columns.tolist() == [1, 0]
    assert class_map.num_others == 2
    own = ('cat', 'hound', 'bird', 'cow')
    assert match_classes(own, TEACHER, 4, 4, class_names={'hound': 'dog'}) is None
    swapped = match_classes(TEACHER, TEACHER, 4, 4, class_names={'cat': 'dog', 'dog': 'cat'})
    assert swapped.columns.tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ('class_names', 'message'),
    [
        ({'hund': 'dog'}, "student has no class 'hund'; did you mean 'hound'"),
        ({'hound': 'dogs'}, r"class_names\['hound'\]: .* no class 'dogs'; did you mean 'dog'"),
        ({'hound': 'cat'}, "'hound' and 'cat' would both be taught by the teacher's 'cat'"),
        ({}, r"does not know 1 .*: hound\. .*class_names=\{'hound': "),
    ],
)
def test_wrong_names_of_the_teacher(class_names: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        match_classes(('hound', 'cat'), TEACHER, 2, 4, class_names=class_names)


@pytest.mark.parametrize(('student', 'teacher'), [(None, TEACHER), (TEACHER, None)])
def test_names_of_the_teacher_need_both_sides(student, teacher) -> None:
    with pytest.raises(ConfigError, match=r'class_names cannot be used: .* are unknown'):
        match_classes(student, teacher, 4, 4, class_names={'cat': 'cat'})


@pytest.mark.parametrize('names', [['cat'], 'cat', {'cat': 3}, {3: 'cat'}, {'cat': None}])
def test_names_that_are_no_dict_of_texts(names) -> None:
    with pytest.raises(ConfigError, match=r'model\.teacher\.class_names must be a dict'):
        check_class_names(names)
    assert check_class_names(None) == {}
