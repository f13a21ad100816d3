"""A study as a page: collect -> measures, learning, layers, axes -> words, tables, figures -> page, export."""
