"""Terms that the page explains where they stand, each with its source."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

TERMS = {
    "massive": "A value of the residual stream above 100 and above 1000 times the median magnitude of its "
    "tensor (Sun et al. 2024).",
    "six_sigma": "A value further than 6 standard deviations from the mean of its tensor (Bondarenko et al. 2023).",
    "attention sink": "A token to which a head gives its attention whatever it reads (Gu et al. 2024).",
    "no-op head": "A head that writes next to nothing for at least half of its queries (Bondarenko et "
    "al. 2023; thresholds ours).",
    "kurtosis": "Mean fourth power of the distance from the mean, in standard deviations: 3 for a "
    "normal distribution, far more with "
    "outliers (Bondarenko et al. 2023).",
    "inf norm": "The largest magnitude of a tensor (Bondarenko et al. 2023).",
    "alpha": "The attention that a key receives, averaged over the queries that can see it (Gu et al. 2024).",
    "entropy": "How widely a head spreads its attention: 0 when it looks at one token; here over that "
    "of even attention, so 1 at most.",
    "value_drain": "The value vector of a sink is short, so that attending to it writes little (An et al. 2025).",
    "systematic_attention": "A token that receives at least a tenth of all attention of its layer (An et al. 2025).",
    "systematic_activation": "A token whose largest value is above 1000 times the mean magnitude of "
    "its tensor (An et al. 2025).",
    "int8_feature": "A dim that reaches 6 in many layers and at many positions of linear inputs (Dettmers et al. 2022).",
    "extreme_neuron": "A dim that is the largest or the smallest of at least half of all token vectors (Luo et al. 2021).",
    "weight_column": "A column of a weight matrix whose largest entry stands far out of its mean (An "
    "et al. 2025; threshold ours).",
    "weight_row": "A row of a weight matrix whose largest entry stands far out of its mean (An et al. "
    "2025; threshold ours).",
    "norm_weight": "A dim at which the weights of norms stand out by 3 std in more than 3 layers (Kovaleva et al. 2021).",
    "super_weight_candidate": "A single weight that may hold a model's largest activation (Yu et al. "
    "2024); not tested here.",
    "resid_post": "The residual stream after a block; names of sites are TransformerLens'.",
    "mlp_post": "What the down projection of the MLP reads: its neurons.",
    "mlp_out": "What the MLP adds to the residual stream.",
    "attn_in": "What the projections of queries, keys and values read.",
    "delimiter": "A token like . , or a newline, or a special one like [SEP], on which attention "
    "tends to rest (Clark et al. 2019).",
    "linear input": "What a linear layer reads, and a quantizer rounds.",
    "predicted": "Follows from the statistics of this scan by a stated rule (docs/rules.md); nothing "
    "was run in that format.",
    "dim": "An index of the residual stream or, at mlp_post, a neuron; all indices count from 0.",
    "int8 per tensor": "8-bit integers with one scale for a whole tensor, fixed beforehand (static).",
    "int8 per token": "8-bit integers with a scale for every token, computed as it comes (dynamic).",
    "fp8 e4m3": "8-bit floats with 4 bits of exponent; here scaled so that the largest value just fits.",
}
"""Term -> one line with its source; thresholds stand in docs/rules.md."""

_PATTERN = re.compile(
    r"(?<![\w.])("
    + "|".join(re.escape(term) for term in sorted(TERMS, key=len, reverse=True))
    + r")(s?)(?!\w)",
    re.IGNORECASE,
)


def explained(text: str) -> Markup:
    """The text, escaped, with the first mention of each term as a button that explains it.

    >>> explained("<b> dim 3, dim 4")
    Markup('&lt;b&gt; <button type="button" class="term" data-term="dim">dim</button> 3, dim 4')
    """
    parts, end, seen = [Markup("")], 0, set()
    for found in _PATTERN.finditer(text):
        term = found[1].lower()
        if term in seen:
            continue
        seen.add(term)
        parts.append(escape(text[end : found.start()]))
        parts.append(
            Markup('<button type="button" class="term" data-term="{}">{}</button>').format(term, found[0])
        )
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])
