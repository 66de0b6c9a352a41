"""Word Embedding Visualization via Dictionary Learning (arXiv 1910.03833)."""
