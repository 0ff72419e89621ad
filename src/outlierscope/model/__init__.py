"""The model under the scope: loading it, finding its sites, proving them, tapping them."""
