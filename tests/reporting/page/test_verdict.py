"""What the page says first: nothing that was not judged, and nothing that another statement on it denies."""

from dataclasses import replace

import outlierscope as osc
from outlierscope.reporting.page.events import delimiter_share, six_sigma_events
from outlierscope.reporting.page.verdict import headline, misleading
from outlierscope.reporting.summary import FormatLine, summarize


def with_words(scan, **words):
    """The summary of a scan whose number formats had these words."""
    lines = [FormatLine(name.replace("_", " "), word, "") for name, word in words.items()]
    return replace(summarize(scan), formats=lines)


def test_healthy_is_only_said_where_massive_activations_were_judged(healthy, shared_model):
    assert headline(healthy, summarize(healthy)) == ("Healthy", "fine")
    model = osc.load(shared_model("stories260k"))
    blind = osc.scan(model, ["Once upon a time. " * 40] * 4, tokens=400, length=96, only=("format",))
    fine = with_words(blind, float16="fine", bfloat16="fine", int8_per_tensor="fine")
    assert headline(blind, fine)[0] == "Fine in every number format, massive activations not judged"
    risky = with_words(blind, int8_per_tensor="at risk")
    assert "Looks harmless, isn't" not in dict(misleading(blind, risky))


def test_what_is_no_massive_activation_is_one_of_the_residual_stream(healthy):
    told = dict(misleading(healthy, with_words(healthy, int8_per_tensor="fails")))
    assert told["Looks harmless, isn't"].startswith(
        "No value of the residual stream is massive, and yet int8 per tensor fails"
    )


def test_massive_activations_are_not_called_harmless_beside_a_format_that_fails(infected):
    words = {"int8_per_tensor": "fine", "bfloat16": "fine"}
    told = dict(misleading(infected, with_words(infected, float16="fine", **words)))
    assert told["Looks alarming, isn't"].endswith("what int8 linear layers read is predicted fine.")
    told = dict(misleading(infected, with_words(infected, float16="fails", **words)))
    assert told["Harmless for int8 only"].endswith("is predicted fine, float16 fails.")
    assert "The residual stream reaches" not in told.get("Looks alarming, isn't", "")


def test_articles_are_no_delimiters(healthy):
    events = six_sigma_events(healthy, "decoder")
    names = healthy.evidence.corpus.class_names
    counts = sum(stat.by_dim_class.sum(0) for stat in events).tolist()
    by_class = dict(zip(names, counts, strict=True))
    assert by_class["weak_semantic"] > 0, "the share must depend on it"
    expected = (by_class["special"] + by_class["strong_delimiter"]) / sum(counts)
    (sentence,) = delimiter_share(healthy, "decoder", events)
    assert abs(float(sentence.split(" %")[0]) - 100 * expected) < 0.6
