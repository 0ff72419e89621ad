"""Finding the sites of a model and proving them: recording, search, proof."""
