"""Normalization strategies as encoder plugins: one file each, with its formula."""
