"""Looking at attention patterns while they pass, by two routes."""
