"""outlierscope: an oscilloscope for the outliers of transformers."""
from outlierscope.version import __version__ as __version__
