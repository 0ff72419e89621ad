"""One pass over a corpus that ties model, corpus, statistics and criteria together."""
