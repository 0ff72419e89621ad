"""The HTML report: sections, each one file, put together into one self-contained page."""
