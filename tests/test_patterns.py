import pytest

from resnet_jax.config.patterns import check_pattern
from resnet_jax.errors import UserError


@pytest.mark.parametrize(
    "pattern",
    ["", "bn|bias", r"stage[1-3]_block\d+/.*kernel", "^(?!head)", "(ab){2}", "(conv\\d?)+"],
)
def test_takes(pattern):
    check_pattern("optimizer.frozen", pattern)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "missing )"),
        ("(a+)+", "a repeat inside a repeat"),
        ("((a|b*)c)*", "a repeat inside a repeat"),
        ("(?:.*)*?x", "a repeat inside a repeat"),
        ("(" * 10_000, "bad pattern"),
    ],
)
def test_refuses(pattern, problem):
    with pytest.raises(UserError, match=r"^config field optimizer.frozen: bad pattern") as error:
        check_pattern("optimizer.frozen", pattern)
    assert problem in str(error.value)
    assert len(str(error.value)) < 300
