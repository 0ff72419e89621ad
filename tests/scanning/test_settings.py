import pytest

from outlierscope.errors import UserError
from outlierscope.scanning.restore import restore_settings
from outlierscope.scanning.settings import (
    ScanSettings,
    parse_layers,
    parse_names,
    parse_thresholds,
)


@pytest.mark.parametrize(
    ("text", "layers"), [("3", (3,)), ("0-2", (0, 1, 2)), (" 5 , 1-2", (1, 2, 5)), (None, None)]
)
def test_layers(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "3-1", "1,,2", "0-999999999"])
def test_nonsense_layers(text):
    with pytest.raises(UserError, match="--layers"):
        parse_layers(text)


@pytest.mark.parametrize("option", ["six_sigma", "six_sigma=3", "six_sigma.sigma=x", ".sigma=1", ""])
def test_nonsense_thresholds(option):
    with pytest.raises(
        UserError, match=r"--threshold wants CRITERION\.FIELD=NUMBER, such as six_sigma\.sigma=8"
    ):
        parse_thresholds([option])


def test_thresholds_of_one_criterion_are_collected():
    assert parse_thresholds(["massive.absolute=50", "massive.ratio=10", "sink.epsilon=0.2"]) == {
        "massive": {"absolute": 50.0, "ratio": 10.0},
        "sink": {"epsilon": 0.2},
    }


def test_names():
    assert parse_names("a, b,,c", ()) == ("a", "b", "c")
    assert parse_names(None, ("x",)) == ("x",)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"tokens": 0}, "tokens must be a whole number of at least 1, not 0"),
        ({"tokens": True}, "tokens must be a whole number of at least 1, not True"),
        ({"length": -4}, "length must be a whole number of at least 1, not -4"),
        ({"batch_size": 1.5}, "batch size must be a whole number of at least 1, not 1.5"),
        ({"bos": "yes"}, "bos must be True, False or None, not 'yes'"),
        ({"sites": ("residual",)}, "unknown site 'residual'; choose from embed, resid_pre"),
        ({"sites": ()}, "no site given; choose from embed"),
        ({"only": ("colours",)}, "unknown kind 'colours'; choose from activation, weight, attention, format"),
    ],
)
def test_nonsense_settings(choice, message):
    with pytest.raises(UserError) as error:
        ScanSettings(**choice)
    assert message in str(error.value)


def test_settings_survive_their_description():
    settings = ScanSettings(
        tokens=7,
        layers=(1, 2),
        bos=True,
        thresholds={"sink": {"epsilon": 0.2}},
        sites=("z",),
        only=("weight",),
    )
    assert restore_settings(settings.describe()) == settings


def test_kinds_in_the_plural_are_understood():
    assert ScanSettings(only=("weights", "activation")).only == ("weight", "activation")
