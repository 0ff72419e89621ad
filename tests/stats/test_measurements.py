import torch

from outlierscope.stats.histogram import LogHistogram
from outlierscope.stats.measurements import Measurements
from outlierscope.stats.moments import Moments
from outlierscope.stats.observation import Observation
from tests.stats.sequences_of import SITE
from tests.stats.test_digest import batch_of


def seen():
    return Observation(SITE, torch.randn(2, 5, 3), batch_of(torch.ones(2, 5, dtype=torch.bool)))


def test_a_copy_takes_in_what_the_first_does_not_see():
    first = Measurements()
    first.add(SITE, Moments())
    first.add(SITE, LogHistogram())
    moments, histogram = first.at(SITE)
    cheap = first.copy()
    cheap.take(SITE, seen(), dear=False)
    dear = cheap.copy()
    dear.take(SITE, seen(), dear=True)
    assert first.at(SITE) == [moments, histogram]
    assert (moments.count, histogram.total) == (0, 0)
    assert [
        (table.get(SITE, "moments").count, table.get(SITE, "histogram").total) for table in (cheap, dear)
    ] == [
        (10, 0),
        (20, 30),
    ]
    assert cheap.get(SITE, "histogram") is histogram
