"""Which of what was measured is an outlier: one small class per rule of the literature."""
