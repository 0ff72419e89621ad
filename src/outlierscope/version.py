"""The version of outlierscope, in a module of its own so that reading it imports nothing heavy."""

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions on which the bits of a result depend.

    >>> versions()["outlierscope"] == __version__
    True
    """
    import platform
    from importlib.metadata import version

    return {
        "outlierscope": __version__,
        "python": platform.python_version(),
        **{
            name: version(name)
            for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy", "numba")
        },
    }
