"""Clip lists: which clips there are, where their media lie, what is known of them."""
