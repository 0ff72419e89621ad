"""What a person sees of a scan: the terminal summary, the progress bar, the HTML page."""
